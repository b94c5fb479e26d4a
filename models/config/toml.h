// A run's configuration (models/config/config.h) from TOML and back.
//
// One table in config.cc describes every key: its name, field, allowed values and help. Parsing,
// the checks, "did you mean", `orthofed config` and docs/configuration.md all come from it, and
// every default from the structs.
//
// Paths. `~` is expanded. A relative path in a file means the one beside the file if that exists,
// else the one in the working directory; in an override it means the one in the working directory.
// What is loaded holds absolute paths. data.manifest stays relative to data.root.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "models/config/config.h"

namespace orthofed {

// `overrides` are "key=value" with dotted keys, later ones win. A value is TOML where the key takes
// it as such; else it is a string, or for a key that holds a list the words between commas:
// "precision=bf16", "train.lr=3e-4", "lora.targets=q,v", "data.labels.NEU=neutrophil".
//
// The method then fills in what was left open: one with a penalty gets its weight of
// penalty.update if no penalty weight is set; the others have no penalty, and those with one adapter
// have no personal_rank and personal_alpha, whatever the file says: so that one file serves all
// methods. What is set aside that way is said in `notes`, one line each.
//
// UserError for what cannot be read, is no TOML, an unknown key, a wrong type, a value or a
// combination that is not allowed: one line that begins with the file and line or the override.
RunConfig load_config(const std::filesystem::path& file,
                      const std::vector<std::string>& overrides = {},
                      std::vector<std::string>* notes = nullptr);

// The same with the file's text at hand; `file` is what it is called in messages, and its folder is
// where relative paths are looked for first.
RunConfig parse_config(const std::string& text, const std::filesystem::path& file,
                       const std::vector<std::string>& overrides = {},
                       std::vector<std::string>* notes = nullptr);

// Every setting as TOML; parse_config gives the same configuration back.
std::string config_toml(const RunConfig& config);

// The keys in which two configurations differ.
std::vector<std::string> differing_keys(const RunConfig& a, const RunConfig& b);

// UserError where a text that a command cannot do without ("data.root") is empty.
void require_set(const RunConfig& config, const std::string& name);

}  // namespace orthofed
