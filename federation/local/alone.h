// Training without a federation: one site by itself (`orthofed train`) or everybody's
// images in one place (a reference that no hospital can run).
#pragma once
#include <functional>

#include "federation/server/server.h"
#include "models/training/site_trainer.h"

namespace orthofed {

// Rounds of training on `client`'s images (empty: everybody's), then scores of every client whose
// images were scored. state_dir: where adapters and optimiser state are kept; it gets
// personal_adapter.safetensors (local) or general_adapter.safetensors (pooled). The result is what
// a federation's would be, without bytes. round(t, T) before, report(t, what happened) after each
// round. started: made where the caller began to set up.
FederationResult run_alone(const RunConfig& config, const std::string& client,
                           const std::string& state_dir, SiteTrainer::Callbacks callbacks,
                           const std::function<void(int64_t, int64_t)>& round,
                           const std::function<void(int64_t, const RoundReport&)>& report,
                           const Stopwatch& started = Stopwatch{});

}  // namespace orthofed
