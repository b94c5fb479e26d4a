// What the records call ceilings is the engine's measurement, once per process, device and type. In
// a tree of kernels alone nobody measures it.
#include "bench/support/record.h"

#ifdef OF_HAVE_ENGINE
#include <map>

#include "engine/tensor/ceiling.h"
#include "engine/tensor/device.h"
#endif

namespace orthofed::bench {

Ceilings ceilings_of([[maybe_unused]] Device device, [[maybe_unused]] DType dtype) {
#ifdef OF_HAVE_ENGINE
  static std::map<std::pair<Device, DType>, Ceilings> known;
  const auto [it, unknown] = known.try_emplace({device, dtype});
  if (unknown) {
    const OnDevice here(device);
    const orthofed::Ceilings measured = measure_ceilings(dtype);
    it->second = {1e-9 * measured.flops, 1e-9 * measured.bytes};
  }
  return it->second;
#else
  return {};
#endif
}

}  // namespace orthofed::bench
