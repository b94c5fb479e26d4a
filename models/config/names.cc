#include "models/config/names.h"

namespace orthofed {

bool is_client_name(std::string_view name) {
  constexpr std::string_view kAllowed =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
  return !name.empty() && name.size() <= 64 && name[0] != '.' &&
         name.find_first_not_of(kAllowed) == std::string_view::npos;
}

}  // namespace orthofed
