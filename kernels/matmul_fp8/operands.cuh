// What the versions of matmul_fp8 share: how an operand lies in memory, and what becomes of a sum.
#pragma once
#include "kernels/matmul/epilogue.cuh"
#include "kernels/matmul_fp8/row_scale.h"

namespace orthofed::gpu {
namespace {

// e4m3 [rows, k] as bf16 of half the length; the zeros behind a row make it a whole number.
Operand<bf16> pairs_of(const e4m3* q, int64_t rows, int64_t k, int64_t ldq) {
  return operand(reinterpret_cast<const bf16*>(q), rows, quantised_pitch(k) / 2, ldq / 2,
                 /*along_k=*/true);
}

// C = diag(sa) sums diag(sb) + bias
template <class C>
struct Scaled {
  Store<C> store;
  const float *scales_a, *scales_b;  // [m], [n]

  bool packs() const { return store.packs() && packable<4>(scales_b, 0); }
  template <int N>
  __device__ Nothing load(int64_t, int64_t) const {
    return {};
  }
  template <int N>
  __device__ void operator()(int64_t i, int64_t j, Pack<float, N> sums, Nothing) const {
    const float scale = scales_a[i];
    const auto across = load_pack<N>(scales_b + j);
    for (int q = 0; q < N; ++q) sums[q] = sums[q] * scale * across[q];
    store(i, j, sums, Pack<C, N>{});
  }
};

}  // namespace
}  // namespace orthofed::gpu
