// Loops and sums over the rows and columns of a matrix. Their order depends on the shape alone:
// neither the number of threads nor the vector width changes a result, and the sums vectorise
// without -ffast-math, because their order is written down rather than left to the compiler.
#pragma once
#include <algorithm>
#include <cstdint>

#include "kernels/core/parallel.h"

namespace orthofed::cpu {

// Rows per chunk of parallel_for: about 16k elements, long enough to hide the cost of a chunk and
// short enough to stay in the level-1 and -2 caches.
inline int64_t row_grain(int64_t cols) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, cols));
}

// Likewise for items of so many multiply-adds each: chunks of about 2^16.
inline int64_t product_grain(int64_t multiply_adds) {
  return std::max<int64_t>(1, (int64_t{1} << 16) / std::max<int64_t>(1, multiply_adds));
}

inline constexpr int64_t kLanes = 16;  // two AVX2 registers of floats, one AVX-512 register

// Combines term(j) over j in [0, n): lane l takes j = l, l + 16, l + 32, ...; the lanes are then
// folded pairwise. As a sum it errs by at most (n/16 + 4) eps/2 sum |term|.
template <class A, class Term, class Combine>
A lane_fold(int64_t n, A start, Term term, Combine combine) {
  A lane[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) lane[l] = start;
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes)
    for (int64_t l = 0; l < kLanes; ++l) lane[l] = combine(lane[l], term(j + l));
  for (int64_t l = 0; j < n; ++j, ++l) lane[l] = combine(lane[l], term(j));
  for (int64_t l = 0; l < 8; ++l) lane[l] = combine(lane[l], lane[l + 8]);
  for (int64_t l = 0; l < 4; ++l) lane[l] = combine(lane[l], lane[l + 4]);
  for (int64_t l = 0; l < 2; ++l) lane[l] = combine(lane[l], lane[l + 2]);
  return combine(lane[0], lane[1]);
}

template <class A, class Term>
A lane_sum(int64_t n, Term term) {
  return lane_fold(n, A(0), term, [](A a, A b) { return a + b; });
}

// <x, y> of n elements, in double.
template <class X, class Y>
double dot(const X* x, const Y* y, int64_t n) {
  return lane_sum<double>(n, [=](int64_t i) { return double(x[i]) * double(y[i]); });
}

// Returns the largest term; a NaN may or may not be passed over.
template <class A, class Term>
A lane_max(int64_t n, A start, Term term) {
  return lane_fold(n, start, term, [](A a, A b) { return a > b ? a : b; });
}

// Computes out[j] = sum over i of term(i, j), added to what is there if accumulate. One task owns a
// block of columns and walks all rows, so no partial sums are stored: it sums the 128 rows of a
// chunk in A, and the chunks in double. Errs by at most 128 eps/2 sum |term| + eps/2 |out|.
template <class A, class Term>
void column_sum(int64_t rows, int64_t cols, A* out, bool accumulate, Term term) {
  constexpr int64_t kColumns = 32, kRows = 128;
  parallel_for(cols, kColumns, [=](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kColumns) {
      const int64_t width = std::min(kColumns, end - first);
      double total[kColumns];
      for (int64_t j = 0; j < width; ++j) total[j] = accumulate ? double(out[first + j]) : 0.0;
      for (int64_t chunk = 0; chunk < rows; chunk += kRows) {
        A partial[kColumns] = {};
        for (int64_t i = chunk; i < std::min(rows, chunk + kRows); ++i)
          for (int64_t j = 0; j < width; ++j) partial[j] += term(i, first + j);
        for (int64_t j = 0; j < width; ++j) total[j] += double(partial[j]);
      }
      for (int64_t j = 0; j < width; ++j) out[first + j] = A(total[j]);
    }
  });
}

}  // namespace orthofed::cpu
