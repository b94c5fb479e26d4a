// The inner loop of matrix kernels (tile.h) for processors that multiply bf16 (native_bf16()):
// vdpbf16ps adds a0 b0 + a1 b1 to each float of a register, twice what a float multiply-add does.
//
// Operands are pairs of bf16 that are neighbours along the inner dimension, one in the lower, one
// in the upper half of 32 bits. Along a row of bf16 that is how they lie in memory; where the inner
// dimension runs down the rows, two rows are interleaved.
//
// Sums are float. Each addition of a product rounds to nearest even; subnormals count as 0.
#pragma once
#if defined(__x86_64__)
// GCC 12 warns of registers that its own header leaves undefined on purpose (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <cstdint>

#include "kernels/core/parallel.h"
#include "kernels/core/types.h"

namespace orthofed::cpu::pairs {

#define OF_BF16 __attribute__((target(OF_TARGET_BF16)))

inline constexpr int lanes = 16;  // floats, or pairs, in a register
// With three registers of columns: 24 sums, 3 of B and one of A, of 32 registers.
inline constexpr int tile_rows = 8;

// A float matrix to which the result is written or added.
struct Floats {
  float* at;
  int64_t ld;
  bool add;
  OF_BF16 __m512 load(int64_t i, int64_t j) const {
    return add ? _mm512_loadu_ps(at + i * ld + j) : _mm512_setzero_ps();
  }
  OF_BF16 void store(int64_t i, int64_t j, __m512 sum) const {
    _mm512_storeu_ps(at + i * ld + j, sum);
  }
};

// C [tile_rows, columns * lanes] at row i, column j of c: sums in ascending p onto what c.load
// gives. A[i, p] = a[i * a_row + p * a_col]; B [k, columns * lanes] pitch ldb; k and pitches in
// pairs.
template <int columns, class C>
OF_BF16 inline void multiply_tile(const uint32_t* a, int64_t a_row, int64_t a_col,
                                  const uint32_t* b, int64_t ldb, const C& c, int64_t i0,
                                  int64_t j0, int64_t k) {
  __m512 sum[tile_rows][columns];
#pragma GCC unroll 8
  for (int i = 0; i < tile_rows; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < columns; ++j) sum[i][j] = c.load(i0 + i, j0 + j * lanes);
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
    for (int j = 0; j < columns; ++j) c.store(i0 + i, j0 + j * lanes, sum[i][j]);
  }
}

// The same for C [m, n], m a multiple of tile_rows and n of lanes: operands are padded.
template <class C>
OF_BF16 inline void multiply_block(const uint32_t* a, int64_t a_row, int64_t a_col,
                                   const uint32_t* b, int64_t ldb, const C& c, int64_t m, int64_t n,
                                   int64_t k) {
  for (int64_t j = 0, columns; j < n; j += columns * lanes) {
    const int64_t left = (n - j) / lanes;
    columns = left == 4 ? 2 : std::min<int64_t>(left, 3);  // 4 = 2 + 2, one has too few sums
    for (int64_t i = 0; i < m; i += tile_rows) {
      const uint32_t* rows = a + i * a_row;
      if (columns == 3) multiply_tile<3>(rows, a_row, a_col, b + j, ldb, c, i, j, k);
      if (columns == 2) multiply_tile<2>(rows, a_row, a_col, b + j, ldb, c, i, j, k);
      if (columns == 1) multiply_tile<1>(rows, a_row, a_col, b + j, ldb, c, i, j, k);
    }
  }
}
OF_BF16 inline void multiply_block(const uint32_t* a, int64_t a_row, int64_t a_col,
                                   const uint32_t* b, int64_t ldb, float* c, int64_t ldc, int64_t m,
                                   int64_t n, int64_t k, bool add) {
  multiply_block(a, a_row, a_col, b, ldb, Floats{c, ldc, add}, m, n, k);
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

// Asks now for what is read some rows later: rows may be pages apart, where the processor's own
// prefetchers do not follow. Past the end nothing happens.
OF_BF16 inline void prefetch(const bf16* row, int64_t ld, int64_t j) {
  _mm_prefetch(reinterpret_cast<const char*>(row + 16 * ld + j), _MM_HINT_T1);
}

// The first n of 16 elements; none where n is negative.
inline __mmask16 first(int64_t n) {
  return __mmask16(n >= lanes ? 0xffff : (1u << std::max<int64_t>(n, 0)) - 1);
}

// 16 bf16 as floats: exact.
OF_BF16 inline __m512 widen(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

// n elements, zeros behind them.
OF_BF16 inline __m256i load_16(const bf16* from, int64_t n) {
  return _mm256_maskz_loadu_epi16(first(n), from);
}

// row [cols] = factor * from
OF_BF16 inline void store_row(const float* from, float factor, bf16* row, int64_t cols) {
  const __m512 f = _mm512_set1_ps(factor);
  for (int64_t j = 0; j < cols; j += lanes) {
    const auto x = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(f, _mm512_loadu_ps(from + j)));
    _mm256_mask_storeu_epi16(row + j, first(cols - j), x);
  }
}

// to [padded_rows, pitch / 2] = from [rows, cols], pairs along the columns, zeros around. pitch, of
// elements, is a multiple of lanes.
OF_BF16 inline void load_rows(const bf16* from, int64_t ld, int64_t rows, int64_t cols,
                              uint32_t* to, int64_t padded_rows, int64_t pitch) {
  for (int64_t i = 0; i < padded_rows; ++i, to += pitch / 2) {
    const bf16* row = from + i * ld;
    for (int64_t j = 0; j < pitch; j += lanes) {
      prefetch(row, ld, j);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + j / 2),
                          load_16(row + j, i < rows ? cols - j : 0));
    }
  }
}

// to [padded_rows / 2, pitch] = from [rows, cols], pairs down the rows, zeros around.
OF_BF16 inline void load_pairs(const bf16* from, int64_t ld, int64_t rows, int64_t cols,
                               uint32_t* to, int64_t padded_rows, int64_t pitch) {
  for (int64_t i = 0; i < padded_rows; i += 2, to += pitch) {
    const bf16* row = from + i * ld;
    for (int64_t j = 0; j < pitch; j += lanes) {
      prefetch(row, ld, j);
      prefetch(row + ld, ld, j);
      const __m256i upper = load_16(row + j, i < rows ? cols - j : 0);
      const __m256i lower = load_16(row + ld + j, i + 1 < rows ? cols - j : 0);
      _mm512_storeu_si512(to + j,
                          interleave(_mm512_inserti64x4(_mm512_castsi256_si512(upper), lower, 1)));
    }
  }
}

}  // namespace orthofed::cpu::pairs
#endif
