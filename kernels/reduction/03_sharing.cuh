// 3, sharing: a fixed number of blocks shares the vector, and each thread adds up many elements in
// a register before the block's one tree. Adding in a register costs no barrier, and there are few
// partial sums left for the second launch.
#pragma once
#include "kernels/reduction/02_sequential.cuh"

namespace orthofed::gpu {
namespace {

template <class T>
__global__ void sharing_kernel(ReductionSum<T> a, float* partial) {
  __shared__ float sums[kThreads];
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  float sum = 0;
  for (int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x; j < a.n; j += stride)
    sum += float(a.x[j]);
  tree_sum(sums, sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sums[0];
}

struct Sharing {
  template <class T, class Stream>
  static void run(const ReductionSum<T>& a, const Stream& stream) {
    two_phases(sharing_kernel<T>, sharing_blocks(a.n), a, stream);
  }
};

}  // namespace
}  // namespace orthofed::gpu
