// 4, shuffles: lanes of a warp read each other's registers, so that a warp's 32 values meet without
// shared memory, and the 8 warps with two barriers instead of eight.
#pragma once
#include "kernels/reduction/two_phases.cuh"

namespace orthofed::gpu {
namespace {

template <class T>
__global__ void shuffle_kernel(ReductionSum<T> a, float* partial) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  float sum = 0;
  for (int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x; j < a.n; j += stride)
    sum += float(a.x[j]);
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

struct Shuffles {
  template <class T, class Stream>
  static void run(const ReductionSum<T>& a, const Stream& stream) {
    two_phases(shuffle_kernel<T>, sharing_blocks(a.n), a, stream);
  }
};

}  // namespace
}  // namespace orthofed::gpu
