// Comma-separated values (RFC 4180): quoted fields may hold commas, doubled quotes and line breaks;
// lines end with LF or CRLF; a UTF-8 byte order mark is skipped, as are empty lines.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace orthofed {

struct CsvTable {
  std::vector<std::string> header;
  struct Row {
    int64_t line = 0;                 // where it begins, from 1
    std::vector<std::string> fields;  // as many as the header has
  };
  std::vector<Row> rows;
};

// Throws UserError naming source and line: no header, a column twice, an open quote, text after a
// closing quote, a row with more or fewer fields than the header.
CsvTable parse_csv(std::string_view text, const std::string& source);

}  // namespace orthofed
