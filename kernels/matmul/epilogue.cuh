// What happens to a sum between the registers and memory: one functor each, so that a kernel is
// written once. epilogue(i, j, sums) takes N neighbours of row i from column j on; N > 1 only where
// packs() allows.
#pragma once
#include "kernels/core/warp.cuh"

namespace orthofed::gpu {
namespace {

// C = AB [+ bias] [+ C]
template <class C>
struct Store {
  C* c;
  int64_t ldc;
  const float* bias;  // [n] or null
  bool accumulate;

  template <int N>
  __device__ void operator()(int64_t i, int64_t j, Pack<float, N> sums) const {
    C* to = c + i * ldc + j;
    if (bias != nullptr) {
      const auto b = load_pack<N>(bias + j);
      for (int q = 0; q < N; ++q) sums[q] += b[q];
    }
    if (accumulate) {
      const auto before = load_pack<N>(to);
      for (int q = 0; q < N; ++q) sums[q] += float(before[q]);
    }
    Pack<C, N> result;
    for (int q = 0; q < N; ++q) result[q] = C(sums[q]);
    store_pack(to, result);
  }
  bool packs() const { return packable<4>(c, ldc) && packable<4>(bias, 0); }
};

}  // namespace
}  // namespace orthofed::gpu
