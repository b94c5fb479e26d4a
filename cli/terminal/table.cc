#include "cli/terminal/table.h"

#include <algorithm>

#include "engine/io/text.h"
#include "kernels/core/check.h"

namespace orthofed::cli {

namespace {

std::string padded(const std::string& cell, int width, Align align) {
  const std::string blanks(static_cast<size_t>(std::max(0, width - display_width(cell))), ' ');
  return align == Align::left ? cell + blanks : blanks + cell;
}

// In markdown a bar would start the next cell and a line break would end the table.
std::string markdown_cell(const std::string& cell) {
  std::string escaped;
  for (const char c : cell) {
    if (c == '|') escaped += '\\';
    escaped += c == '\n' ? ' ' : c;
  }
  return escaped;
}

}  // namespace

Table::Table(std::vector<std::string> headers, std::vector<Align> aligns)
    : headers_(std::move(headers)), aligns_(std::move(aligns)) {
  OF_CHECK(!headers_.empty() && aligns_.size() <= headers_.size(), "a table needs its columns");
  while (aligns_.size() < headers_.size())
    aligns_.push_back(aligns_.empty() ? Align::left : Align::right);
}

void Table::add_row(std::vector<std::string> cells) {
  OF_CHECK(cells.size() == headers_.size(), "a row has one cell a column");
  rows_.push_back(std::move(cells));
}

void Table::add_rule() {
  rows_.emplace_back();
}

std::string Table::text() const {
  std::vector<int> widths;
  for (size_t c = 0; c < headers_.size(); ++c) {
    int width = display_width(headers_[c]);
    for (const auto& row : rows_)
      if (!row.empty()) width = std::max(width, display_width(row[c]));
    widths.push_back(width);
  }
  std::string out;
  const auto write = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (size_t c = 0; c < cells.size(); ++c)
      line += (c == 0 ? "" : "  ") + padded(cells[c], widths[c], aligns_[c]);
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + '\n';
  };
  const auto rule = [&] {
    std::vector<std::string> dashes;
    for (const int width : widths) dashes.emplace_back(static_cast<size_t>(width), '-');
    write(dashes);
  };
  write(headers_);
  rule();
  for (const auto& row : rows_) row.empty() ? rule() : write(row);
  return out;
}

std::string Table::markdown() const {
  std::string out;
  const auto write = [&](const std::vector<std::string>& cells) {
    for (const std::string& cell : cells) out += "| " + markdown_cell(cell) + ' ';
    out += "|\n";
  };
  write(headers_);
  for (const Align align : aligns_) out += align == Align::left ? "|---" : "|---:";
  out += "|\n";
  for (const auto& row : rows_)
    if (!row.empty()) write(row);
  return out;
}

}  // namespace orthofed::cli
