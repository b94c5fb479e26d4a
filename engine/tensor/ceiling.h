// The best that this machine can do is measured: how many bytes per second a copy of memory that is
// in no cache reads and writes, and how many operations per second a large matrix product does. A
// kernel's share of its ceiling is how near it comes to the nearer of the two (Williams, Waterman,
// Patterson, "Roofline", doi 10.1145/1498765.1498785).
#pragma once
#include <algorithm>

#include "kernels/core/cost.h"
#include "kernels/core/device.h"
#include "kernels/core/types.h"

namespace orthofed {

struct Ceilings {
  double flops = 0, bytes = 0;  // per second

  // The least seconds that so much work takes.
  double seconds(const Cost& c) const { return std::max(c.flops / flops, c.bytes / bytes); }
};

// Measures the calling thread's current device with its threads, with products in `compute` (f32
// or bf16); takes about a second. On the CPU one factor is packed, as frozen weights are. The best
// of several attempts counts, because whatever else the machine does can only lower them. On device
// simt the ceilings are the emulator's.
Ceilings measure_ceilings(DType compute);

}  // namespace orthofed
