// A frame's manifest: JSON that is read strictly. Included by what decodes messages alone, because
// it brings the JSON library along.
#pragma once
#include <fmt/core.h>

#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>

#include "federation/wire/frame.h"

namespace orthofed {

// The manifest of the frame that `where` names. Throws ProtocolError where it is not JSON or has a
// key twice.
nlohmann::json parse_manifest(const std::string& text, const std::string& where);

// A JSON object whose keys are taken one by one; done() refuses what is left over.
class Fields {
 public:
  Fields(const nlohmann::json& object, std::string where, std::string path = {})
      : object_(object), where_(std::move(where)), path_(std::move(path)) {
    if (!object.is_object()) fail(path_.empty() ? "manifest" : path_, "is not an object");
  }

  [[noreturn]] void fail(std::string_view field, std::string_view what) const {
    throw ProtocolError(fmt::format("{}: {} {}", where_, printable(field), what));
  }
  bool has(const char* key) const { return object_.contains(key); }
  std::string path(std::string_view key) const {
    return path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
  }

  const nlohmann::json& at(const char* key) {
    const auto it = object_.find(key);
    if (it == object_.end()) fail(path(key), "is missing");
    taken_.insert(key);
    return *it;
  }
  int64_t integer(const char* key, int64_t low, int64_t high) {
    return integer_of(at(key), path(key), low, high);
  }
  int64_t integer_of(const nlohmann::json& value, const std::string& field, int64_t low,
                     int64_t high) const {
    if (!value.is_number_integer()) fail(field, "is not an integer");
    const bool too_large = value.is_number_unsigned() && value.get<uint64_t>() > uint64_t(high);
    if (too_large || value.get<int64_t>() < low)
      fail(field, fmt::format("= {} is outside {} .. {}", value.dump(), low, high));
    return value.get<int64_t>();
  }
  double number(const char* key, double low, double high) {
    const nlohmann::json& value = at(key);
    if (!value.is_number()) fail(path(key), "is not a number");
    const double x = value.get<double>();
    if (!(x >= low && x <= high))
      fail(path(key), fmt::format("= {} is outside {} .. {}", x, low, high));
    return x;
  }
  double number_or_nan(const char* key, double low, double high) {
    const nlohmann::json& value = at(key);
    return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : number(key, low, high);
  }
  bool flag(const char* key) {
    const nlohmann::json& value = at(key);
    if (!value.is_boolean()) fail(path(key), "is not true or false");
    return value.get<bool>();
  }
  std::string text(const char* key) {
    const nlohmann::json& value = at(key);
    if (!value.is_string()) fail(path(key), "is not a string");
    const auto& s = value.get_ref<const std::string&>();
    if (s.size() > kMaxText) fail(path(key), fmt::format("is longer than {} bytes", kMaxText));
    return s;
  }
  std::string sha256(const char* key) {
    std::string s = text(key);
    if (!is_digest(s)) fail(path(key), "is not a SHA-256 in lower-case hexadecimal");
    return s;
  }
  const nlohmann::json& object(const char* key, size_t max_entries) {
    const nlohmann::json& value = at(key);
    if (!value.is_object()) fail(path(key), "is not an object");
    if (value.size() > max_entries)
      fail(path(key), fmt::format("has more than {} entries", max_entries));
    return value;
  }
  std::map<std::string, std::string> texts(const char* key, size_t max_entries) {
    std::map<std::string, std::string> texts;
    for (const auto& [name, value] : object(key, max_entries).items()) {
      if (!value.is_string()) fail(path(key), "holds what is not a string");
      texts[name] = value.get<std::string>();
    }
    return texts;
  }
  const nlohmann::json& array(const char* key, size_t max_entries) {
    const nlohmann::json& value = at(key);
    if (!value.is_array()) fail(path(key), "is not an array");
    if (value.size() > max_entries)
      fail(path(key), fmt::format("has more than {} entries", max_entries));
    return value;
  }
  void done() const {
    for (const auto& [key, value] : object_.items())
      if (!taken_.count(key)) fail(path(key), "is not a key of this frame");
  }

 private:
  const nlohmann::json& object_;
  std::string where_, path_;
  std::set<std::string> taken_;
};

}  // namespace orthofed
