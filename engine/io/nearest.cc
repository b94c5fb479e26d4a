#include "engine/io/nearest.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>

namespace orthofed {
namespace {

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

}  // namespace

int edit_distance(std::string_view a, std::string_view b) {
  const size_t columns_count = b.size() + 1;
  std::vector<int> table((a.size() + 1) * columns_count);  // [|a| + 1, |b| + 1]
  const auto at = [&](size_t i, size_t j) -> int& { return table[i * columns_count + j]; };
  for (size_t i = 0; i <= a.size(); ++i) at(i, 0) = static_cast<int>(i);
  for (size_t j = 0; j <= b.size(); ++j) at(0, j) = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const int change = a[i - 1] == b[j - 1] ? 0 : 1;
      at(i, j) = std::min({at(i - 1, j) + 1, at(i, j - 1) + 1, at(i - 1, j - 1) + change});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        at(i, j) = std::min(at(i, j), at(i - 2, j - 2) + 1);
    }
  }
  return table.back();
}

std::string nearest_name(const std::string& name, const std::vector<std::string>& known) {
  // A word of two letters is no misspelling of every other word of two letters.
  const auto length = static_cast<int>(name.size());
  int least = (length < 4 ? 1 : std::max(2, length / 3)) + 1;
  std::string best;
  for (const std::string& candidate : known) {
    const int distance = edit_distance(lower(name), lower(candidate));
    if (distance < least && !candidate.empty()) {
      least = distance;
      best = candidate;
    }
  }
  return best;
}

std::string suggestion(const std::string& name, const std::vector<std::string>& known) {
  constexpr size_t kShown = 12;
  if (known.empty()) return "";
  const std::string best = nearest_name(name, known);
  if (!best.empty()) return fmt::format("; did you mean '{}'?", best);
  const bool all = known.size() <= kShown;
  return fmt::format(
      "; known: {}{}",
      fmt::join(known.begin(), known.begin() + long(std::min(known.size(), kShown)), ", "),
      all ? "" : ", ...");
}

}  // namespace orthofed
