// The names that a configuration gives.
#pragma once
#include <string_view>

namespace orthofed {

// A client's name is part of paths and messages: 1 to 64 of A-Z a-z 0-9 . _ -, no dot first.
bool is_client_name(std::string_view name);

}  // namespace orthofed
