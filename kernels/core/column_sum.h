// How much scratch memory the sums over the rows of a matrix need (column_sum.cuh).
#pragma once
#include <cstddef>
#include <cstdint>

namespace orthofed::gpu {

inline constexpr int64_t kChunkRows = 128;  // summed in float; chunks are summed in double

// Bytes for `sums` sums over the rows of a [rows, cols] matrix.
inline size_t column_sum_scratch(int64_t rows, int64_t cols, int sums = 1) {
  const int64_t chunks = (rows + kChunkRows - 1) / kChunkRows;
  return size_t(chunks * sums * cols) * sizeof(float);
}

}  // namespace orthofed::gpu
