// 2, sequential: the same tree, upper half added to lower half. The threads that work are
// neighbours: whole warps fall idle instead of most lanes of every warp, and no two lanes meet in a
// bank.
#pragma once
#include "kernels/reduction/two_phases.cuh"

namespace orthofed::gpu {
namespace {

// Every thread brings a value; sums[0] ends as the total, and thread 0 may read it.
__device__ inline void tree_sum(float (&sums)[kThreads], float value) {
  const int t = int(threadIdx.x);
  sums[t] = value;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (t < half) sums[t] += sums[t + half];
  }
}

template <class T>
__global__ void sequential_kernel(ReductionSum<T> a, float* partial) {
  __shared__ float sums[kThreads];
  const int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  tree_sum(sums, j < a.n ? float(a.x[j]) : 0.0f);
  if (threadIdx.x == 0) partial[blockIdx.x] = sums[0];
}

struct Sequential {
  template <class T, class Stream>
  static void run(const ReductionSum<T>& a, const Stream& stream) {
    two_phases(sequential_kernel<T>, ceil_div(a.n, kThreads), a, stream);
  }
};

}  // namespace
}  // namespace orthofed::gpu
