// The inner product of matrix kernels (tile.h) where the processor multiplies bf16 (native_bf16()):
// vdpbf16ps adds a0 b0 + a1 b1 to each float of a register, twice what a float multiply-add does.
//
// Operands are pairs of bf16 that are neighbours along the inner dimension, one in the lower, one
// in the upper half of 32 bits. Along a row of bf16 that is how they lie in memory; where the inner
// dimension runs down the rows, two rows are interleaved.
//
// Sums are in float, each product's addition rounded to nearest even; subnormals count as 0.
#pragma once
#if defined(__x86_64__)
// GCC 12 takes the deliberately undefined registers of its own header for mistakes (GCC bug
// 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <cstdint>

#include "kernels/core/parallel.h"

namespace orthofed::cpu::pairs {

#define OF_BF16 __attribute__((target(OF_TARGET_BF16)))

inline constexpr int lanes = 16;  // floats, or pairs, in a register
// With three registers of columns: 24 sums, 3 of B and one of A, of 32 registers.
inline constexpr int tile_rows = 8;

// C [tile_rows, columns * lanes] pitch ldc  =  A B  (or += if `add`), sums in ascending p.
// A[i, p] = a[i * a_row + p * a_col]; B [k, columns * lanes] pitch ldb; k and pitches in pairs.
template <int columns>
OF_BF16 inline void multiply_tile(const uint32_t* a, int64_t a_row, int64_t a_col,
                                  const uint32_t* b, int64_t ldb, float* c, int64_t ldc, int64_t k,
                                  bool add) {
  __m512 sum[tile_rows][columns];
#pragma GCC unroll 8
  for (int i = 0; i < tile_rows; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < columns; ++j)
      sum[i][j] = add ? _mm512_loadu_ps(c + i * ldc + j * lanes) : _mm512_setzero_ps();
  }
  for (int64_t p = 0; p < k; ++p, a += a_col, b += ldb) {
    __m512i row[columns];
#pragma GCC unroll 3
    for (int j = 0; j < columns; ++j) row[j] = _mm512_loadu_si512(b + j * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < tile_rows; ++i) {
      const __m512i x = _mm512_set1_epi32(static_cast<int32_t>(a[i * a_row]));
#pragma GCC unroll 3
      for (int j = 0; j < columns; ++j)
        sum[i][j] = _mm512_dpbf16_ps(sum[i][j], (__m512bh)x, (__m512bh)row[j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < tile_rows; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < columns; ++j) _mm512_storeu_ps(c + i * ldc + j * lanes, sum[i][j]);
  }
}

// The same for C [m, n], m a multiple of tile_rows and n of lanes: operands are padded.
OF_BF16 inline void multiply_block(const uint32_t* a, int64_t a_row, int64_t a_col,
                                   const uint32_t* b, int64_t ldb, float* c, int64_t ldc, int64_t m,
                                   int64_t n, int64_t k, bool add) {
  for (int64_t j = 0, columns; j < n; j += columns * lanes) {
    const int64_t left = (n - j) / lanes;
    columns = left == 4 ? 2 : std::min<int64_t>(left, 3);  // 4 = 2 + 2, one has too few sums
    for (int64_t i = 0; i < m; i += tile_rows) {
      const uint32_t* rows = a + i * a_row;
      float* to = c + i * ldc + j;
      if (columns == 3) multiply_tile<3>(rows, a_row, a_col, b + j, ldb, to, ldc, k, add);
      if (columns == 2) multiply_tile<2>(rows, a_row, a_col, b + j, ldb, to, ldc, k, add);
      if (columns == 1) multiply_tile<1>(rows, a_row, a_col, b + j, ldb, to, ldc, k, add);
    }
  }
}

// Two registers of floats, rounded: those of `first` below, those of `second` above.
OF_BF16 inline __m512i round_two(__m512 first, __m512 second) {
  return (__m512i)_mm512_cvtne2ps_pbh(second, first);
}

// [first, second] of 16 elements each -> their pairs
OF_BF16 inline __m512i interleave(__m512i two_rows) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, two_rows);
}

}  // namespace orthofed::cpu::pairs
#endif
