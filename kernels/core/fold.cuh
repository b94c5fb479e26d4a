// The second half of a sum that many blocks share. Each block has left its part of every entry in
// scratch memory, partial [blocks, entries], and a launch of fold_shape(entries) adds them up in an
// order that the number of blocks alone fixes. Eight threads share an entry and add every eighth
// part, so that their loads overlap.
//
//   const int64_t e = folded_entry();
//   const float sum = fold_entry(partial, blocks, entries, e, e < entries);
//   if (threadIdx.y > 0 || e >= entries) return;
//   out[e] = sum;
#pragma once
#include "kernels/core/gpu.cuh"

namespace orthofed::gpu {
namespace {

inline constexpr int kFoldWays = 8;

inline LaunchShape fold_shape(int64_t entries) {
  return {.grid_x = unsigned(ceil_div(entries, 32)), .threads_x = 32, .threads_y = kFoldWays};
}

// The entry of this thread, which may lie beyond the last.
__device__ inline int64_t folded_entry() {
  return int64_t{blockIdx.x} * 32 + threadIdx.x;
}

// Its sum, in the threads with threadIdx.y == 0. All threads of the block call it; what is not
// wanted is not read.
template <class A>
__device__ A fold_entry(const A* partial, int64_t blocks, int64_t entries, int64_t e, bool wanted) {
  __shared__ A sums[kFoldWays][32];
  A sum = 0;
  if (wanted) {
#pragma unroll 8
    for (int64_t block = threadIdx.y; block < blocks; block += kFoldWays)
      sum += partial[block * entries + e];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0) {
#pragma unroll
    for (int way = 1; way < kFoldWays; ++way) sum += sums[way][threadIdx.x];
  }
  return sum;
}

}  // namespace
}  // namespace orthofed::gpu
