#include "models/config/toml.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <sstream>
#include <toml.hpp>
#include <utility>

#include "engine/io/nearest.h"
#include "engine/io/text.h"
#include "kernels/core/check.h"
#include "models/config/check.h"
#include "models/config/keys.h"

namespace orthofed {

namespace {

namespace fs = std::filesystem;
using Strings = std::vector<std::string>;

constexpr const char* kOverride = "override ";  // begins the origin of what the file does not say
using Integers = std::vector<int64_t>;
using StringMap = std::map<std::string, std::string>;

// ---- TOML, whichever toml11 ---------------------------------------------------------------------

template <class Location>
int line_of(const Location& location) {
  if constexpr (requires { location.first_line_number(); }) {
    return static_cast<int>(location.first_line_number());  // toml11 4
  } else {
    return static_cast<int>(location.line());  // toml11 3
  }
}

toml::value parse_toml(const std::string& text, const std::string& name) {
  std::istringstream stream(text);
  return toml::parse(stream, name);
}

// toml11 reports an error over several lines: "[error] toml::function: what", then "--> file", then
// the lines of the file, each as " 12 | text". This keeps what and where.
std::string one_line(const std::string& report, const std::string& file) {
  std::string what = report.substr(0, report.find('\n'));
  std::string line;
  std::istringstream stream(report);
  for (std::string part; line.empty() && std::getline(stream, part);) {
    const size_t first = part.find_first_not_of(' ');
    const size_t bar = part.find(" |");
    if (first != std::string::npos && bar != std::string::npos && first < bar &&
        part.find_first_not_of("0123456789", first) == bar)
      line = part.substr(first, bar - first) + ':';
  }
  if (what.rfind("[error] ", 0) == 0) what.erase(0, 8);
  if (what.rfind("toml::", 0) == 0) {
    const size_t end = what.find(": ");
    if (end != std::string::npos) what.erase(0, end + 2);
  }
  return fmt::format("{}:{} not valid TOML: {}", file, line, what);
}

std::string found(const toml::value& value) {
  if (value.is_string())
    return "the string " + string_literal(fit(toml::get<std::string>(value), 60));
  if (value.is_integer()) return fmt::format("the integer {}", toml::get<int64_t>(value));
  if (value.is_floating()) return fmt::format("the number {:g}", toml::get<double>(value));
  if (value.is_boolean()) return toml::get<bool>(value) ? "true" : "false";
  if (value.is_array()) return "a list";
  if (value.is_table()) return "a table";
  return "a date or time";
}

// One `key = value` as the user wrote it.
struct Entry {
  std::string key;
  toml::value value;
  std::string origin;  // "run.toml:12" or "override train.lr=fast"
  int line = 0;
};

// Leaves of a parsed table as dotted keys. A table that is a known key stays whole.
void flatten(const toml::value& table, const std::string& prefix, const std::string& file,
             std::vector<Entry>& entries) {
  for (const auto& [name, value] : table.as_table()) {
    const std::string key = prefix.empty() ? name : prefix + '.' + name;
    if (value.is_table() && find_config_key(key) == nullptr &&
        (is_config_section(key) || !value.as_table().empty())) {
      flatten(value, key, file, entries);
    } else {
      const int line = line_of(value.location());
      entries.push_back({key, value, fmt::format("{}:{}", file, line), line});
    }
  }
}

std::vector<Entry> entries_of_file(const std::string& text, const std::string& file) {
  std::vector<Entry> entries;
  try {
    flatten(parse_toml(text, file), "", file, entries);
  } catch (const std::exception& error) {
    throw UserError(one_line(error.what(), file));
  }
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.line < b.line; });
  return entries;
}

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

// Words between commas, with or without brackets around them, as a TOML list of strings.
std::string bare_list(std::string text) {
  if (text.size() >= 2 && text.front() == '[' && text.back() == ']')
    text = text.substr(1, text.size() - 2);
  Strings words;
  std::istringstream stream(text);
  for (std::string word; std::getline(stream, word, ',');)
    words.push_back(string_literal(trimmed(word)));
  return '[' + joined(words) + ']';
}

std::vector<Entry> entries_of_override(const std::string& override_text) {
  const std::string origin = kOverride + override_text;
  const size_t equals = override_text.find('=');
  const std::string left = trimmed(override_text.substr(0, equals));
  if (equals == std::string::npos || left.empty())
    throw UserError(origin + ": expected key=value, as in train.lr=3e-4");
  const std::string right = trimmed(override_text.substr(equals + 1));

  const auto attempt = [&](const std::string& value) -> std::optional<std::vector<Entry>> {
    std::vector<Entry> entries;
    try {
      flatten(parse_toml(left + " = " + value + '\n', origin), "", origin, entries);
    } catch (const std::exception&) {
      return std::nullopt;
    }
    for (Entry& entry : entries) entry.origin = origin;
    return entries;
  };

  const auto named = attempt("0");
  if (!named || named->size() != 1)
    throw UserError(origin + ": expected a dotted key before the =");
  const ConfigKey* key = find_config_key(named->front().key);
  RunConfig scratch;
  const ConfigField field = key != nullptr ? key->field(scratch) : static_cast<bool*>(nullptr);
  if (std::holds_alternative<std::string*>(field) || std::holds_alternative<WordField>(field)) {
    const auto entries = attempt(right);
    return entries && entries->front().value.is_string() ? *entries
                                                         : attempt(string_literal(right)).value();
  }
  const bool list = key != nullptr && (std::holds_alternative<Strings*>(field) ||
                                       std::holds_alternative<Integers*>(field));
  if (list) {
    for (const std::string& value : {right, '[' + right + ']', bare_list(right)}) {
      const auto entries = attempt(value);
      if (entries && entries->front().value.is_array()) return *entries;
    }
  }
  if (const auto entries = attempt(right)) return *entries;
  return attempt(string_literal(right)).value();
}

// ---- Values into fields -------------------------------------------------------------------------

[[noreturn]] void fail_unknown(const Entry& entry) {
  if (is_config_section(entry.key))
    throw UserError(fmt::format("{}: '{}' is a section: expected a table, found {}", entry.origin,
                                entry.key, found(entry.value)));
  const std::string near = nearest_config_key(entry.key);
  throw UserError(fmt::format(
      "{}: unknown key '{}'; {}", entry.origin, entry.key,
      near.empty() ? "docs/configuration.md lists all keys" : "did you mean '" + near + "'?"));
}

[[noreturn]] void fail_type(const ConfigKey& key, const Entry& entry, const std::string& expected,
                            const toml::value& value) {
  throw UserError(
      fmt::format("{}: {}: expected {}, found {}", entry.origin, key.name, expected, found(value)));
}

std::string read_string(const ConfigKey& key, const Entry& entry, const toml::value& value) {
  if (!value.is_string()) fail_type(key, entry, "a string", value);
  const std::string text = toml::get<std::string>(value);
  const Strings words = key.words();
  if (!words.empty() && std::find(words.begin(), words.end(), text) == words.end()) {
    const std::string near = nearest_name(text, words);
    throw UserError(fmt::format("{}: {}: {} is not one of {}{}", entry.origin, key.name,
                                string_literal(text), key.allowed(),
                                near.empty() ? "" : "; did you mean '" + near + "'?"));
  }
  return text;
}

double in_range(const ConfigKey& key, const Entry& entry, double number, const toml::value& value) {
  if (!key.rule.range.contains(number))
    throw UserError(fmt::format("{}: {}: expected a value {}, found {}", entry.origin, key.name,
                                key.rule.range.text(), found(value)));
  return number;
}

int64_t read_integer(const ConfigKey& key, const Entry& entry, const toml::value& value) {
  if (!value.is_integer()) fail_type(key, entry, "an integer", value);
  const int64_t number = toml::get<int64_t>(value);
  in_range(key, entry, static_cast<double>(number), value);
  return number;
}

double read_number(const ConfigKey& key, const Entry& entry, const toml::value& value) {
  if (value.is_integer())
    return in_range(key, entry, static_cast<double>(toml::get<int64_t>(value)), value);
  if (!value.is_floating()) fail_type(key, entry, "a number", value);
  return in_range(key, entry, toml::get<double>(value), value);
}

// `beside` is the folder in which a relative path is looked for first; empty: none.
std::string resolved(const std::string& text, const fs::path& beside) {
  if (text.empty()) return text;
  fs::path path = text;
  if (text == "~" || text.rfind("~/", 0) == 0) {
    const char* home = std::getenv("HOME");
    if (home != nullptr) path = fs::path(home) / text.substr(std::min<size_t>(2, text.size()));
  }
  std::error_code ignored;
  if (path.is_relative() && !beside.empty() && fs::exists(beside / path, ignored))
    path = beside / path;
  path = fs::absolute(path).lexically_normal();
  return path.has_filename() ? path.string() : path.parent_path().string();
}

void assign(const ConfigKey& key, const Entry& entry, const fs::path& beside, RunConfig& config) {
  const toml::value& value = entry.value;
  std::visit(Overloaded{[&](std::string* text) {
                          *text = read_string(key, entry, value);
                          if (key.rule.is_path) *text = resolved(*text, beside);
                        },
                        [&](const WordField& choice) {
                          const std::string text = read_string(key, entry, value);
                          const auto at = std::find(choice.words.begin(), choice.words.end(), text);
                          choice.set(choice.field, size_t(at - choice.words.begin()));
                        },
                        [&](int64_t* number) { *number = read_integer(key, entry, value); },
                        [&](uint64_t* number) {
                          *number = static_cast<uint64_t>(read_integer(key, entry, value));
                        },
                        [&](double* number) { *number = read_number(key, entry, value); },
                        [&](bool* flag) {
                          if (!value.is_boolean()) fail_type(key, entry, "true or false", value);
                          *flag = toml::get<bool>(value);
                        },
                        [&](Strings* list) {
                          if (!value.is_array()) fail_type(key, entry, "a list of strings", value);
                          list->clear();
                          for (const toml::value& item : value.as_array())
                            list->push_back(read_string(key, entry, item));
                        },
                        [&](Integers* list) {
                          if (!value.is_array()) fail_type(key, entry, "a list of integers", value);
                          list->clear();
                          for (const toml::value& item : value.as_array())
                            list->push_back(read_integer(key, entry, item));
                        },
                        [&](StringMap* map) {
                          if (!value.is_table()) fail_type(key, entry, "a table of strings", value);
                          // An override of one name keeps the others.
                          for (const auto& [name, item] : value.as_table())
                            (*map)[name] = read_string(key, entry, item);
                        }},
             key.field(config));
}

// train.epochs has a default, so that a file with train.steps alone means steps; and an override of
// one replaces the file's other one.
void choose_epochs_or_steps(const ConfigOrigins& origins, RunConfig& config) {
  TrainConfig& train = config.train;
  if (train.epochs == 0 || train.steps == 0) return;
  const auto rank = [&](const char* key) {
    const auto origin = origins.find(key);
    return origin == origins.end() ? 0 : origin->second.rfind(kOverride, 0) == 0 ? 2 : 1;
  };
  const int epochs = rank("train.epochs"), steps = rank("train.steps");
  if (epochs == steps)
    throw UserError(
        origins.at("train.steps") +
        ": train.steps: train.epochs is set too; a round has one of them, set the other to 0");
  (epochs < steps ? train.epochs : train.steps) = 0;
}

}  // namespace

// ---- The interface ------------------------------------------------------------------------------

RunConfig parse_config(const std::string& text, const fs::path& file, const Strings& overrides,
                       Strings* notes) {
  RunConfig config;
  ConfigOrigins origins;
  const auto apply = [&](const std::vector<Entry>& entries, const fs::path& beside) {
    for (const Entry& entry : entries) {
      const ConfigKey* key = find_config_key(entry.key);
      if (key == nullptr) fail_unknown(entry);
      assign(*key, entry, beside, config);
      origins[entry.key] = entry.origin;
    }
  };
  const std::string name = file.string();
  apply(entries_of_file(text, name), fs::absolute(file).parent_path());
  for (const std::string& override_text : overrides) apply(entries_of_override(override_text), "");

  choose_epochs_or_steps(origins, config);
  const Strings set_aside = apply_method(origins, config);
  check_config(config, origins, name);
  if (notes != nullptr) notes->insert(notes->end(), set_aside.begin(), set_aside.end());
  return config;
}

RunConfig load_config(const fs::path& file, const Strings& overrides, Strings* notes) {
  std::error_code ignored;
  if (fs::is_directory(file, ignored))
    throw UserError(file.string() + ": is a folder; give the configuration file in it");
  std::ifstream stream(file, std::ios::binary);
  if (!stream)
    throw UserError(file.string() + ": cannot be read; give a configuration file (TOML)");
  std::ostringstream text;
  text << stream.rdbuf();
  if (stream.bad()) throw UserError(file.string() + ": reading it failed");
  return parse_config(text.str(), file, overrides, notes);
}

std::string config_toml(const RunConfig& config) {
  RunConfig copy = config;
  std::string out;
  std::string tables;  // data.labels: a section of its own, after the keys of the section it is in
  for (const auto& [section, title] : config_sections()) {
    if (!section.empty()) out += fmt::format("\n[{}]\n", section);
    for (const ConfigKey& key : config_keys()) {
      if (key.section() != section) continue;
      const ConfigField field = key.field(copy);
      if (const auto* map = std::get_if<StringMap*>(&field)) {
        tables += fmt::format("\n[{}]\n", key.name);
        for (const auto& [name, value] : **map)
          tables += fmt::format("{} = {}\n", string_literal(name), string_literal(value));
      } else {
        out += fmt::format("{} = {}\n", key.last(), toml_value(field));
      }
    }
    out += std::exchange(tables, "");
  }
  return out;
}

Strings differing_keys(const RunConfig& a, const RunConfig& b) {
  RunConfig left = a, right = b;
  Strings keys;
  for (const ConfigKey& key : config_keys())
    if (toml_value(key.field(left)) != toml_value(key.field(right))) keys.push_back(key.name);
  return keys;
}

void require_set(const RunConfig& config, const std::string& name) {
  const ConfigKey* key = find_config_key(name);
  OF_CHECK(key != nullptr, "no such key: " + name);
  RunConfig copy = config;
  const ConfigField field = key->field(copy);
  const auto* text = std::get_if<std::string*>(&field);
  const auto* list = std::get_if<Strings*>(&field);
  OF_CHECK(text != nullptr || list != nullptr, name + " is never empty");
  if (text != nullptr ? (*text)->empty() : (*list)->empty())
    throw UserError(
        fmt::format("{} is not set ({}); set it in the configuration or by an override {}=...",
                    name, key->help, name));
}

}  // namespace orthofed
