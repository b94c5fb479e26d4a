// The known name that a misspelt one was probably meant to be, for error messages.
#pragma once
#include <string>
#include <vector>

namespace orthofed {

// Empty if none is near (more than a third of the letters would change).
std::string nearest_name(const std::string& name, const std::vector<std::string>& known);

// "; did you mean 'monocyte'?", or "; known: a, b, c" where none is near.
std::string suggestion(const std::string& name, const std::vector<std::string>& known);

}  // namespace orthofed
