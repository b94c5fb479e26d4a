// 5, packs: 16 bytes a load instruction instead of 2 or 4, and four of them on their way before the
// first is needed. Memory answers after hundreds of cycles: its bandwidth is used only by as many
// bytes in flight as it delivers in that time.
#pragma once
#include "kernels/core/rows.cuh"
#include "kernels/reduction/two_phases.cuh"

namespace orthofed::gpu {
namespace {

template <class T>
__global__ void pack_kernel(ReductionSum<T> a, float* partial) {
  constexpr int N = kFullPack<T>, kLoads = 4;
  const int64_t stride = int64_t{gridDim.x} * kThreads * N;
  float sums[N] = {};
  for (int64_t j = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * N; j < a.n;
       j += kLoads * stride) {
    Pack<T, N> packs[kLoads];
#pragma unroll
    for (int p = 0; p < kLoads; ++p)
      packs[p] = load_part<N>(a.x + j + p * stride, a.n - (j + p * stride));  // 0 beyond the end
#pragma unroll
    for (int p = 0; p < kLoads; ++p)
#pragma unroll
      for (int e = 0; e < N; ++e) sums[e] += float(packs[p][e]);
  }
  float sum = 0;
#pragma unroll
  for (int e = 0; e < N; ++e) sum += sums[e];
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

struct Packs {
  template <class T, class Stream>
  static void run(const ReductionSum<T>& a, const Stream& stream) {
    two_phases(pack_kernel<T>, sharing_blocks(a.n), a, stream);
  }
};

}  // namespace
}  // namespace orthofed::gpu
