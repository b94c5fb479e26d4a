#include "federation/wire/manifest.h"

#include <vector>

namespace orthofed {

using nlohmann::json;

// JSON leaves duplicate keys open; two readers that pick differently would see two messages.
json parse_manifest(const std::string& text, const std::string& where) {
  std::vector<std::set<std::string>> keys;
  std::string duplicate;
  const auto watch = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
      duplicate = value.get<std::string>();
    return true;
  };
  json manifest;
  try {
    manifest = json::parse(text, watch);
  } catch (const json::exception& e) {
    throw ProtocolError(fmt::format("{}: manifest is not JSON: {}", where, printable(e.what())));
  }
  if (!duplicate.empty())
    throw ProtocolError(
        fmt::format("{}: manifest has the key '{}' twice", where, printable(duplicate)));
  return manifest;
}

}  // namespace orthofed
