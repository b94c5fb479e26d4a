// A whole run on this machine, whatever the method: what `run` does once and `demo` several times.
#pragma once
#include <string>

#include "cli/terminal/federation_view.h"

namespace orthofed::cli {

struct LocalRun {
  Agreement agreement;
  FederationResult result;
  std::string profile;  // of `profile_steps`, to be printed: the table of the one process that
                        // trained, or of the client that trained longest, with a heading
};

// Writes config.toml, metrics.jsonl and every client's folder under `folder`, which exists. label:
// on the progress line. profile_steps: to be measured in each process that trains (0: none), which
// writes profile.txt and trace.json into its folder.
LocalRun run_here(const RunConfig& config, const std::string& folder, bool in_process,
                  Terminal& terminal, const std::string& label = "", int64_t profile_steps = 0);

}  // namespace orthofed::cli
