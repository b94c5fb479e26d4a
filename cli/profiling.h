// What --profile of train, run and join does around the profile itself (engine/tensor/profile.h).
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/terminal/terminal.h"
#include "engine/tensor/profile.h"
#include "models/config/config.h"

namespace orthofed::cli {

// What this machine can do at best, in about a second, on the configuration's device, with its
// threads and type.
Ceilings ceilings_for(const RunConfig& config, Terminal& terminal);

// For the thread that will train. Null where steps is 0.
std::shared_ptr<Profile> make_profile(const RunConfig& config, const Ceilings& ceilings,
                                      int64_t steps);

// Writes FOLDER/profile.txt, the table, and FOLDER/trace.json, and returns the table; or warns that
// no step was measured and returns nothing. Null: nothing at all.
std::string save_profile(const Profile* profile, const std::string& folder, Terminal& terminal);

// On standard output, with a blank line below; neither with --quiet nor with --json.
void print_profile(const std::string& table, const GlobalOptions& global);

}  // namespace orthofed::cli
