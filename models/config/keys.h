// The table of configuration keys: everything that parsing, checking, `orthofed config` and
// docs/configuration.md know about a key, apart from its default, which is in
// models/config/config.h.
#pragma once
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "models/config/config.h"

namespace orthofed {

using ConfigField = std::variant<std::string*, WordField, int64_t*, uint64_t*, double*, bool*,
                                 std::vector<std::string>*, std::vector<int64_t>*,
                                 std::map<std::string, std::string>*>;

// The values a number may take: [low, high], without an end that is open, and `automatic` besides.
struct ConfigRange {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool low_open = false, high_open = false;
  std::optional<double> automatic = std::nullopt;

  bool contains(double x) const;  // never NaN or infinity
  std::string text() const;       // ">= 0 and < 1, or -1"; empty: anything
};

// What a value may be, apart from its type. A field that is an enum class brings its own words.
struct ConfigRule {
  std::vector<std::string> words = {};  // of a string or of a list's strings; empty: any
  ConfigRange range = {};               // of a number or of a list's integers
  bool is_path = false;
};

struct ConfigKey {
  std::string name;                  // "train.lr"
  ConfigField (*field)(RunConfig&);  // the place of its value, which also is its type
  ConfigRule rule;
  std::string help;

  std::string section() const;             // "train"; "" at the top level
  std::string last() const;                // "lr"
  std::string type() const;                // "number"
  std::string default_value() const;       // as TOML
  std::vector<std::string> words() const;  // that it may be; empty: any
  std::string allowed() const;             // "constant | cosine", "> 0"; empty: anything
};

const std::vector<ConfigKey>& config_keys();
const ConfigKey* find_config_key(const std::string& name);  // null if there is none

// The functions of one object, for std::visit.
template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <class... F>
Overloaded(F...) -> Overloaded<F...>;

// The sections in the order of a file, with what they are about; "" is the top level. data.labels
// is a table of free keys, and so a key of [data] rather than a section.
const std::vector<std::pair<std::string, std::string>>& config_sections();
bool is_config_section(const std::string& name);

// "train.lr" for "train.lrr", "lr" or "model.lr"; a key or a section; empty if none is near.
std::string nearest_config_key(const std::string& name);

// What the clients of a federation must have set alike, key -> value as TOML: how adapters are made
// and trained. What a site may choose (its images, device, batch) is not among them.
std::map<std::string, std::string> shared_settings(const RunConfig& config);

// A value as TOML; a table of strings is written inline.
std::string toml_value(const ConfigField& field);

// All keys, or those of one section, or one key. UserError if there is none.
std::string config_listing(const std::string& section = "");  // plain text
std::string config_json(const std::string& section = "");     // one list of objects
std::string config_markdown();                                // docs/configuration.md

}  // namespace orthofed
