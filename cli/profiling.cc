#include "cli/profiling.h"

#include <fmt/core.h>

#include "engine/io/files.h"
#include "engine/tensor/device.h"
#include "kernels/core/parallel.h"
#include "models/methods/method.h"

namespace orthofed::cli {

Ceilings ceilings_for(const RunConfig& config, Terminal& terminal) {
  terminal.message("measuring what this machine can do at best");
  const OnDevice scope(device_of(config.device));
  cpu::set_threads(int(config.threads));
  return measure_ceilings(compute_type(config.precision, scope.device()));
}

std::shared_ptr<Profile> make_profile(const RunConfig& config, const Ceilings& ceilings,
                                      int64_t steps) {
  if (steps == 0) return nullptr;
  const OnDevice scope(device_of(config.device));
  return std::make_shared<Profile>(queue(), ceilings, steps);
}

std::string save_profile(const Profile* profile, const std::string& folder, Terminal& terminal) {
  if (profile == nullptr) return {};
  if (profile->steps() == 0) {
    terminal.warning(
        fmt::format("--profile: nothing was measured, the run has no more than the {} "
                    "steps that warm up; raise rounds or train.epochs",
                    Profile::kWarmUp));
    return {};
  }
  const std::string table = profile->table();
  write_file(folder + "/profile.txt", table);
  write_file(folder + "/trace.json", profile->trace_json());
  return table;
}

void print_profile(const std::string& table, const GlobalOptions& global) {
  if (!table.empty() && !global.quiet && !global.json) fmt::print("{}\n", table);
}

}  // namespace orthofed::cli
