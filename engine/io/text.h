// Text in UTF-8: the columns it takes on a terminal, and the literals that JSON and TOML share.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace orthofed {

// Counts the columns that UTF-8 text takes on a terminal: combining marks take 0, East Asian wide
// characters and emoji 2, all else 1. A byte that is not valid UTF-8 counts 1.
int display_width(std::string_view text);

// The longest prefix that fits into `width` columns, ended by "..." if something was cut.
std::string fit(std::string_view text, int width);

// A double-quoted literal that is valid in JSON and in TOML alike. Bytes that are not valid UTF-8
// become U+FFFD.
std::string string_literal(std::string_view text);

// A number as JSON and TOML write it, such that reading it gives the same double. Finite only.
std::string number_literal(double value);

// "a, b, c"
std::string joined(const std::vector<std::string>& words, std::string_view separator = ", ");

}  // namespace orthofed
