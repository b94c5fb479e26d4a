// The known name that a misspelt one was probably meant to be, for error messages.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace orthofed {

// Insertions, deletions, substitutions and swaps of neighbours that turn a into b (optimal string
// alignment; Damerau 1964).
int edit_distance(std::string_view a, std::string_view b);

// Whatever the case of the letters. Empty if none is near: more than a third of them would change.
std::string nearest_name(const std::string& name, const std::vector<std::string>& known);

// "; did you mean 'monocyte'?", or "; known: a, b, c" where none is near.
std::string suggestion(const std::string& name, const std::vector<std::string>& known);

}  // namespace orthofed
