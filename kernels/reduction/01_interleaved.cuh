// 1, naive: a block sums 256 elements as a tree in shared memory, neighbours first, then pairs of
// neighbours, and so on. At every level the threads that work lie further apart: all 8 warps stay
// busy for the few threads in each that add, and their addresses collide in the same memory banks.
#pragma once
#include "kernels/reduction/two_phases.cuh"

namespace orthofed::gpu {
namespace {

template <class T>
__global__ void interleaved_kernel(ReductionSum<T> a, float* partial) {
  __shared__ float sums[kThreads];
  const int t = int(threadIdx.x);
  const int64_t j = int64_t{blockIdx.x} * kThreads + t;
  sums[t] = j < a.n ? float(a.x[j]) : 0.0f;
  for (int step = 1; step < kThreads; step *= 2) {
    __syncthreads();
    if (t % (2 * step) == 0) sums[t] += sums[t + step];
  }
  if (t == 0) partial[blockIdx.x] = sums[0];
}

struct Interleaved {
  template <class T, class Stream>
  static void run(const ReductionSum<T>& a, const Stream& stream) {
    two_phases(interleaved_kernel<T>, ceil_div(a.n, kThreads), a, stream);
  }
};

}  // namespace
}  // namespace orthofed::gpu
