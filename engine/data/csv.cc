#include "engine/data/csv.h"

#include <fmt/core.h>

#include <algorithm>
#include <set>

#include "kernels/core/check.h"

namespace orthofed {
namespace {

class Parser {
 public:
  Parser(std::string_view text, const std::string& source) : text_(text), source_(source) {
    if (text_.substr(0, 3) == "\xef\xbb\xbf") at_ = 3;
  }

  // False at the end of the text.
  bool next(CsvTable::Row& row) {
    while (line_end()) {
    }  // empty lines
    if (at_ == text_.size()) return false;
    row.line = line_;
    row.fields.clear();
    do {
      row.fields.push_back(field());
    } while (comma());
    if (!line_end() && at_ != text_.size())
      fail("has text after a closing quote; double the quotes inside a field");
    return true;
  }

  [[noreturn]] void fail(const std::string& what) const { fail(line_, what); }
  [[noreturn]] void fail(int64_t line, const std::string& what) const {
    throw UserError(fmt::format("{} line {}: {}", source_, line, what));
  }

 private:
  bool line_end() {
    const size_t length = text_.substr(at_, 2) == "\r\n" ? 2 : text_.substr(at_, 1) == "\n" ? 1 : 0;
    at_ += length;
    line_ += length > 0;
    return length > 0;
  }
  bool comma() {
    if (text_.substr(at_, 1) != ",") return false;
    ++at_;
    return true;
  }
  std::string field() {
    if (text_.substr(at_, 1) != "\"") {
      const size_t end = std::min(text_.find_first_of(",\n", at_), text_.size());
      std::string_view value = text_.substr(at_, end - at_);
      if (value.ends_with('\r')) value.remove_suffix(1);
      at_ += value.size();
      return std::string(value);
    }
    const int64_t opened = line_;
    std::string value;
    for (++at_; at_ < text_.size(); ++at_) {
      if (text_[at_] == '\n') ++line_;
      if (text_[at_] == '"') {
        if (text_.substr(at_ + 1, 1) != "\"") {
          ++at_;
          return value;
        }
        ++at_;  // a doubled quote
      }
      value += text_[at_];
    }
    fail(opened, "a quote is opened and never closed");
  }

  std::string_view text_;
  const std::string& source_;
  size_t at_ = 0;
  int64_t line_ = 1;
};

}  // namespace

CsvTable parse_csv(std::string_view text, const std::string& source) {
  Parser parser(text, source);
  CsvTable table;
  CsvTable::Row row;
  if (!parser.next(row)) throw UserError(source + ": is empty; its first line names the columns");
  table.header = row.fields;
  std::set<std::string> names;
  for (const std::string& name : table.header)
    if (!names.insert(name).second)
      parser.fail(row.line, fmt::format("column '{}' appears twice; rename one", name));
  while (parser.next(row)) {
    if (row.fields.size() != table.header.size())
      parser.fail(row.line,
                  fmt::format("has {} fields, the header {}; quote fields that hold commas",
                              row.fields.size(), table.header.size()));
    table.rows.push_back(row);
  }
  return table;
}

}  // namespace orthofed
