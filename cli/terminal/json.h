// JSON as the commands print it, one object per line: {"client": "a", "scores": [0.5, null]}.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace orthofed::cli {

std::string json_text(const std::string& text);
std::string json_flag(bool value);
std::string json_number(double value);  // every digit; null where it is not defined
std::string json_list(const std::vector<std::string>& texts);
std::string json_matrix(const std::vector<std::vector<int64_t>>& rows);
// Names, and values that are JSON already, in order.
std::string json_object(const std::vector<std::pair<std::string, std::string>>& members);

}  // namespace orthofed::cli
