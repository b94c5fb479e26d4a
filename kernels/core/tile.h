// The inner loop of matrix kernels keeps a small tile of C in registers while the columns of A and
// the rows of B pass by, an outer product at each step, as in Goto and van de Geijn, "Anatomy of
// high-performance matrix multiplication", ACM TOMS 34(3), 2008. Everything around it (what is
// copied where, which tile comes when) is the kernel's own.
#pragma once
#include <cstdint>

#include "kernels/core/vector.h"

namespace orthofed::cpu {

// 6 x (2 vectors) are 12 accumulators: with one row of B and one element of A they fill the 16
// registers of SSE and AVX2, and 12 independent sums hide the latency of a multiply-add.
inline constexpr int tile_rows = 6;

template <int lanes>
inline constexpr int tile_cols = 2 * lanes;

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// C [tile_rows, tile_cols] pitch ldc  =  A B  (or += if `add`), sums in ascending p.
// A[i, p] = a[i * a_row + p * a_col]; B [k, tile_cols] pitch ldb.
template <int lanes, class T>
inline void multiply_tile(const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t ldb, T* c,
                          int64_t ldc, int64_t k, bool add) {
  using V = Vector<T, lanes>;
  V sum[tile_rows][2] = {};
  if (add) {
#pragma GCC unroll 6
    for (int i = 0; i < tile_rows; ++i) {
      sum[i][0] = as_vector<V>(c + i * ldc);
      sum[i][1] = as_vector<V>(c + i * ldc + lanes);
    }
  }
  for (int64_t p = 0; p < k; ++p, a += a_col, b += ldb) {
    const V b0 = as_vector<V>(b), b1 = as_vector<V>(b + lanes);
#pragma GCC unroll 6
    for (int i = 0; i < tile_rows; ++i) {
      sum[i][0] += a[i * a_row] * b0;
      sum[i][1] += a[i * a_row] * b1;
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < tile_rows; ++i) {
    as_vector<V>(c + i * ldc) = sum[i][0];
    as_vector<V>(c + i * ldc + lanes) = sum[i][1];
  }
}

// The same for C [m, n], m a multiple of tile_rows and n of tile_cols<lanes>: operands are padded.
template <int lanes, class T>
inline void multiply_block(const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t ldb, T* c,
                           int64_t ldc, int64_t m, int64_t n, int64_t k, bool add) {
  for (int64_t j = 0; j < n; j += tile_cols<lanes>) {
    for (int64_t i = 0; i < m; i += tile_rows) {
      multiply_tile<lanes>(a + i * a_row, a_row, a_col, b + j, ldb, c + i * ldc + j, ldc, k, add);
    }
  }
}

}  // namespace orthofed::cpu
