#include "cli/terminal/json.h"

#include <fmt/ranges.h>

#include <cmath>

#include "engine/io/text.h"

namespace orthofed::cli {

std::string json_text(const std::string& text) {
  return string_literal(text);
}

std::string json_flag(bool value) {
  return value ? "true" : "false";
}

std::string json_number(double value) {
  return std::isfinite(value) ? fmt::format("{:.17g}", value) : "null";
}

std::string json_list(const std::vector<std::string>& texts) {
  std::vector<std::string> literals;
  for (const std::string& text : texts) literals.push_back(json_text(text));
  return fmt::format("[{}]", joined(literals));
}

std::string json_matrix(const std::vector<std::vector<int64_t>>& rows) {
  return fmt::format("[{}]", fmt::join(rows, ", "));
}

std::string json_object(const std::vector<std::pair<std::string, std::string>>& members) {
  std::vector<std::string> parts;
  for (const auto& [name, value] : members) parts.push_back(json_text(name) + ": " + value);
  return fmt::format("{{{}}}", joined(parts));
}

}  // namespace orthofed::cli
