// A whole run on this machine as the terminal shows it: what `run` and `train` do once and `demo`
// several times.
#pragma once
#include <string>

#include "cli/terminal/terminal.h"
#include "federation/local/run_here.h"

namespace orthofed::cli {

// As run_here (federation/local/run_here.h). Clients are threads of this process or, where not
// in_process, `orthofed join` started anew. label: on the progress line; empty: the method.
LocalRun run_shown(const RunConfig& config, const std::string& folder, bool in_process,
                   Terminal& terminal, const std::string& label = "", int64_t profile_steps = 0);

// The profile, if steps were measured, and the result.
void print_run(const LocalRun& run, const std::string& folder, const GlobalOptions& global);

}  // namespace orthofed::cli
