// Error messages suggest the known name that a misspelt one was probably meant to be.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace orthofed {

// Counts the insertions, deletions, substitutions and swaps of neighbours that turn a into b
// (optimal string alignment; Damerau 1964).
int edit_distance(std::string_view a, std::string_view b);

// Returns the nearest name, whatever the case of its letters; empty if more than a third of them
// would have to change.
std::string nearest_name(const std::string& name, const std::vector<std::string>& known);

// Returns "; did you mean 'monocyte'?", or "; known: a, b, c" where no name is near.
std::string suggestion(const std::string& name, const std::vector<std::string>& known);

}  // namespace orthofed
