#include "models/training/profiling.h"

#include "engine/io/files.h"
#include "engine/tensor/device.h"
#include "kernels/core/parallel.h"

namespace orthofed {

Ceilings ceilings_of(Device device, DType compute, int64_t threads) {
  const OnDevice scope(device);
  cpu::set_threads(int(threads));
  return measure_ceilings(compute);
}

std::shared_ptr<Profile> make_profile(Device device, const Ceilings& ceilings, int64_t steps) {
  if (steps == 0) return nullptr;
  const OnDevice scope(device);
  return std::make_shared<Profile>(queue(), ceilings, steps);
}

std::string save_profile(const Profile& profile, const std::string& folder) {
  if (profile.steps() == 0) return {};
  const std::string table = profile.table();
  write_file(folder + "/profile.txt", table);
  write_file(folder + "/trace.json", profile.trace_json());
  return table;
}

}  // namespace orthofed
