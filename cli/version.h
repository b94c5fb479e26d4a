// Which build this is. Written by cmake/version.cmake at every build that follows a commit.
#pragma once
#include <string>

namespace orthofed::cli {

std::string version();  // "0.1.0"
std::string
commit();  // "041b48e75385", "-dirty" after it where files differed; "unknown" without git
std::string version_text();  // "orthofed 0.1.0 (041b48e75385)"

// The libraries this was built against, as "name version", in alphabetical order.
std::string built_with();

}  // namespace orthofed::cli
