// A whole run on this machine, whatever the method: what `run` does once and `demo` several times.
#pragma once
#include <memory>
#include <string>

#include "cli/federation_view.h"

namespace orthofed::cli {

struct LocalRun {
  Agreement agreement;
  FederationResult result;
};

// Writes config.toml, metrics.jsonl and every client's folder under `folder`, which exists. label:
// on the progress line. profile: sees the steps of a run in one place.
LocalRun run_here(const RunConfig& config, const std::string& folder, bool in_process,
                  Terminal& terminal, const std::string& label = "",
                  const std::shared_ptr<Profile>& profile = nullptr);

}  // namespace orthofed::cli
