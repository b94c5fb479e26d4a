// What all versions share. Blocks cannot wait for one another, and finish in any order; so the
// first launch leaves one partial sum a block in scratch memory, and a second one, of a single
// block, adds the partial sums in an order of its own. An atomic addition instead would give other
// bits at every run.
#pragma once
#include <algorithm>

#include "kernels/core/warp.cuh"
#include "kernels/reduction/reduction.h"

namespace orthofed::gpu {
namespace {

constexpr int kThreads = 256;

inline __global__ void sum_partials_kernel(const float* partial, int blocks, float* out) {
  double sum = 0;
  for (int b = int(threadIdx.x); b < blocks; b += kThreads) sum += double(partial[b]);
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) *out = float(sum);
}

// kernel(a, partial) with `blocks` blocks, block b writing partial[b]; then their sum.
template <class T, class Stream>
void two_phases(void (*kernel)(ReductionSum<T>, float*), int64_t blocks, const ReductionSum<T>& a,
                const Stream& stream) {
  auto* partial = scratch_as<float>(stream, reduction_sum_scratch(a.n));  // [blocks]
  launch(kernel, {.grid_x = unsigned(blocks), .threads_x = kThreads}, stream, a, partial);
  launch(sum_partials_kernel, {.threads_x = kThreads}, stream, partial, blocks, a.out);
}

// Blocks among which a vector of any length is shared: no more than a GPU runs at once, and 64
// elements a thread or more. Never the number of this GPU's processors: sums would then depend on
// the card.
inline int64_t sharing_blocks(int64_t n) {
  return std::min<int64_t>(1024, ceil_div(n, 64 * kThreads));
}

}  // namespace
}  // namespace orthofed::gpu
