// Sums over the rows of a matrix, out[j] = sum_i term(i, j), in two launches and an order that the
// shape alone fixes. Many blocks must share the rows of a column, and a GPU's blocks finish in any
// order, so each leaves its part of the sum in scratch memory, and a second launch adds the parts:
//
//   1. A block owns a chunk of 128 rows of 32 columns. Lane = column, so that a warp reads 32
//      neighbours; warp w adds rows w, w + 8, ... in a register; the 8 warps meet in shared memory.
//   2. The same with chunks in the place of rows, in double.
//
// Errs by at most 128 eps/2 sum |term| + eps/2 |out|, as cpu::column_sum (core/rows.h) does.
#pragma once
#include "kernels/core/column_sum.h"
#include "kernels/core/gpu.cuh"

namespace orthofed::gpu {
namespace {

inline constexpr int kSumWarps = 8;

// The launch of a kernel that calls sum_chunk.
inline LaunchShape sum_chunk_shape(int64_t rows, int64_t cols) {
  return {.grid_x = unsigned(ceil_div(rows, kChunkRows) * ceil_div(cols, 32)),
          .threads_x = 32,
          .threads_y = kSumWarps};
}

// This block's chunk: add(i, j, sums) adds the terms of element (i, j) to sums [kSums].
// partial [chunks, kSums, cols].
template <int kSums, class Add>
__device__ void sum_chunk(float* partial, int64_t rows, int64_t cols, const Add& add) {
  __shared__ float parts[kSumWarps][kSums][32];
  const int lane = int(threadIdx.x), warp = int(threadIdx.y);
  const unsigned across = unsigned(ceil_div(cols, 32));  // blocks side by side
  const int64_t chunk = blockIdx.x / across, j = int64_t{blockIdx.x % across} * 32 + lane;
  float sums[kSums] = {};
  if (j < cols) {
#pragma unroll 4
    for (int r = warp; r < kChunkRows; r += kSumWarps)
      if (const int64_t i = chunk * kChunkRows + r; i < rows) add(i, j, sums);
  }
  for (int s = 0; s < kSums; ++s) parts[warp][s][lane] = sums[s];
  __syncthreads();
  if (warp < kSums && j < cols) {  // warp s finishes sum s
    float sum = 0;
    for (int w = 0; w < kSumWarps; ++w) sum += parts[w][warp][lane];
    partial[(chunk * kSums + warp) * cols + j] = sum;
  }
}

// partial [chunks, ld], of which columns [0, cols) are summed.
inline __global__ void sum_chunks_kernel(const float* partial, int64_t ld, int64_t chunks,
                                         float* out, bool accumulate, int64_t cols) {
  __shared__ double parts[kSumWarps][32];
  const int lane = int(threadIdx.x), warp = int(threadIdx.y);
  const int64_t j = int64_t{blockIdx.x} * 32 + lane;
  double sum = 0;
  if (j < cols) {
#pragma unroll 4
    for (int64_t c = warp; c < chunks; c += kSumWarps) sum += double(partial[c * ld + j]);
  }
  parts[warp][lane] = sum;
  __syncthreads();
  if (warp == 0 && j < cols) {
    double total = accumulate ? double(out[j]) : 0.0;
    for (int w = 0; w < kSumWarps; ++w) total += parts[w][lane];
    out[j] = float(total);
  }
}

// The second launch, for sum number s of kSums: out [cols], added to what is there if accumulate.
template <int kSums, class Stream>
void sum_chunks(const float* partial, int s, float* out, bool accumulate, int64_t rows,
                int64_t cols, const Stream& stream) {
  launch(sum_chunks_kernel,
         {.grid_x = unsigned(ceil_div(cols, 32)), .threads_x = 32, .threads_y = kSumWarps}, stream,
         partial + s * cols, kSums * cols, ceil_div(rows, kChunkRows), out, accumulate, cols);
}

}  // namespace
}  // namespace orthofed::gpu
