// What whoever trains does around a profile (engine/tensor/profile.h): it measures the machine first
// and writes the files afterwards.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "engine/tensor/profile.h"

namespace orthofed {

// What this machine can do at best on the device, with that type and that many threads (which this
// process keeps). Takes about a second.
Ceilings ceilings_of(Device device, DType compute, int64_t threads);

// For the thread that will train. Null where steps is 0.
std::shared_ptr<Profile> make_profile(Device device, const Ceilings& ceilings, int64_t steps);

// Writes FOLDER/profile.txt, the table, and FOLDER/trace.json, and returns the table; where no step
// was measured it writes nothing and returns nothing.
std::string save_profile(const Profile& profile, const std::string& folder);

}  // namespace orthofed
