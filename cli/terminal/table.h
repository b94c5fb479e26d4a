// A table for people: columns aligned by what a terminal shows, or GitHub's markdown.
#pragma once
#include <string>
#include <vector>

namespace orthofed::cli {

enum class Align { left, right };

class Table {
 public:
  // `aligns` may be shorter than `headers`: the first column is then left, the others right.
  explicit Table(std::vector<std::string> headers, std::vector<Align> aligns = {});

  void add_row(std::vector<std::string> cells);  // as many cells as there are headers
  void add_rule();                               // a line across, above the next row

  std::string text() const;      // every line ends in '\n', none in a blank
  std::string markdown() const;  // rules have no markdown and are left out

 private:
  std::vector<std::string> headers_;
  std::vector<Align> aligns_;
  std::vector<std::vector<std::string>> rows_;  // an empty row is a rule
};

}  // namespace orthofed::cli
