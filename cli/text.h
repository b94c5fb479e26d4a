// Small text helpers of the command line: widths on a terminal, durations and sizes for people, and
// string literals.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace orthofed::cli {

// Columns that UTF-8 text takes on a terminal: combining marks 0, East Asian wide characters and
// emoji 2, all else 1. A byte that is not valid UTF-8 counts 1.
int display_width(std::string_view text);

// The longest prefix that fits into `width` columns, ended by "..." if something was cut.
std::string fit(std::string_view text, int width);

std::string format_duration(double seconds);  // "0.42 s", "42 s", "3 min 05 s", "2 h 04 min"
std::string format_clock(double seconds);     // "0:42", "3:05", "2:04:10"
std::string format_bytes(double bytes);       // "512 B", "1.2 MB": powers of 1000
std::string format_rate(double per_second);   // three significant digits: "0.42", "31.2", "1234"

// A double-quoted literal that is valid in JSON and in TOML alike. Bytes that are not valid UTF-8
// become U+FFFD.
std::string string_literal(std::string_view text);

// A number as JSON and TOML write it, such that reading it gives the same double. Finite only.
std::string number_literal(double value);

// "a, b, c"
std::string joined(const std::vector<std::string>& words, std::string_view separator = ", ");

}  // namespace orthofed::cli
