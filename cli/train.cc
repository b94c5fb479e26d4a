#include <fmt/core.h>

#include <memory>

#include "cli/commands.h"
#include "cli/config.h"
#include "cli/federation_view.h"
#include "cli/local_run.h"
#include "engine/io/files.h"
#include "engine/tensor/device.h"
#include "engine/tensor/profile.h"
#include "kernels/core/parallel.h"
#include "models/method.h"

namespace orthofed::cli {
namespace {

std::shared_ptr<Profile> make_profile(const RunConfig& config, int64_t steps, Terminal& terminal) {
  terminal.message("measuring what this machine can do at best");
  const OnDevice scope(device_named(config.device));
  cpu::set_threads(int(config.threads));
  return std::make_shared<Profile>(
      queue(), measure_ceilings(compute_type(config.precision, scope.device())), steps);
}

}  // namespace

// One site's images train a personal adapter (method local); without data.client everybody's train
// one (method pooled).
int train(const TrainOptions& o) {
  Terminal terminal(o.global);
  std::vector<std::string> set = o.set;
  const bool one_site = !load_config(o.config, o.set).data.client.empty();
  set.push_back(one_site ? "method=local" : "method=pooled");
  const RunConfig config = open_config(o.config, set, terminal);
  const OutputFolder folder(o.out, "summary.json");
  std::shared_ptr<Profile> profile;
  if (o.profile > 0) profile = make_profile(config, o.profile, terminal);
  const LocalRun done = run_here(config, o.out, true, terminal, config.data.client, profile);
  if (profile != nullptr && profile->steps() == 0)
    terminal.warning(
        fmt::format("--profile: nothing was measured, the run has no more than the {} "
                    "steps that warm up; raise rounds or train.epochs",
                    Profile::kWarmUp));
  if (profile != nullptr && profile->steps() > 0) {
    write_file(o.out + "/trace.json", profile->trace_json());
    if (!o.global.quiet && !o.global.json) fmt::print("{}\n", profile->table());
  }
  report(config, done.agreement, done.result, o.out, o.global);
  return 0;
}

}  // namespace orthofed::cli
