// What must hold between the keys of a configuration, and what the method decides for them.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "models/config/config.h"

namespace orthofed {

// Key -> where it was set last: "run.toml:12" or "override train.lr=1". Keys that were not set are
// absent.
using ConfigOrigins = std::map<std::string, std::string>;

// What the method decides (docs/method.md, "Methods"). Returns what was set aside, one line each.
std::vector<std::string> apply_method(const ConfigOrigins& origins, RunConfig& config);

// Settings of which no training step can be made together. Throws UserError "key: what is wrong".
void require_compatible(const LoraConfig& lora, const PenaltyConfig& penalty,
                        const TrainConfig& train);

// UserError, which begins with the key's origin, else with `file`.
void check_config(const RunConfig& config, const ConfigOrigins& origins, const std::string& file);

}  // namespace orthofed
