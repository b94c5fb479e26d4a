#include <algorithm>
#include <array>
#include <bit>
#include <memory>

#include "kernels/core/check.h"
#include "kernels/core/rows.h"
#include "kernels/matmul_fp8/matmul_fp8.h"
#include "kernels/matmul_fp8/row_scale.h"

namespace orthofed::cpu {
namespace {

// Every e4m3 as bf16, which has a larger range and more bits.
constexpr std::array<bf16, 256> make_widened() {
  std::array<bf16, 256> table{};
  for (int bits = 0; bits < 256; ++bits) {
    e4m3 x{};
    x.bits = uint8_t(bits);
    table[size_t(bits)] = bf16(float(x));
  }
  return table;
}
constexpr std::array<bf16, 256> kWidened = make_widened();

// q [rows, cols] pitch ldq -> to [rows, cols], dense.
void widen(const e4m3* q, int64_t ldq, bf16* to, int64_t rows, int64_t cols) {
  parallel_for(rows, row_grain(cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t p = 0; p < cols; ++p) to[i * cols + p] = kWidened[q[i * ldq + p].bits];
  });
}

}  // namespace

template <class T>
void quantize_rows(const QuantizeRows<T>& a) {
  check_quantised(a.q, a.ldq, a.cols);
  parallel_for(a.rows, row_grain(a.cols), [=, cols = a.cols](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* xi = a.x + i * a.ldx;  // [cols]
      e4m3* qi = a.q + i * a.ldq;     // [cols] and zeros
      // Magnitudes are in the order of their bits, infinity and every NaN above all others.
      const auto largest = lane_max<uint32_t>(
          cols, 0, [xi](int64_t p) { return std::bit_cast<uint32_t>(float(xi[p])) & 0x7fffffffu; });
      const RowScale scale = row_scale(std::bit_cast<float>(largest));
      a.scales[i] = scale.scale;
      const float inverse = scale.inverse;
#pragma GCC ivdep
      for (int64_t p = 0; p < cols; ++p) qi[p] = e4m3(float(xi[p]) * inverse);
      std::fill(qi + cols, qi + quantised_pitch(cols), e4m3(0.0f));
    }
  });
}

template <class C>
void matmul_fp8(const MatmulFp8<C>& p) {
  const MatmulShape& s = p.shape;
  check_fp8_product(p.a, p.b, s);
  constexpr int64_t kRows = 512;  // of C at a time: what is widened and summed stays in cache
  const int64_t rows = std::min(kRows, s.m);
  const auto b_wide = std::make_unique_for_overwrite<bf16[]>(size_t(s.n * s.k));
  const auto a_wide = std::make_unique_for_overwrite<bf16[]>(size_t(rows * s.k));
  const auto sums = std::make_unique_for_overwrite<float[]>(size_t(rows * s.n));
  widen(p.b, s.ldb, b_wide.get(), s.n, s.k);
  for (int64_t first = 0; first < s.m; first += kRows) {
    const int64_t m = std::min(kRows, s.m - first);
    widen(p.a + first * s.lda, s.lda, a_wide.get(), m, s.k);
    matmul(Matmul<bf16, float>{.a = a_wide.get(),
                               .b = b_wide.get(),
                               .c = sums.get(),
                               .shape = {m, s.n, s.k, s.k, s.k, s.n, Op::none, Op::transpose}});
    parallel_for(m, row_grain(s.n),
                 [&, n = s.n, scales_b = p.scales_b, bias = p.bias](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     const float* from = sums.get() + i * n;  // [n]
                     C* to = p.c + (first + i) * s.ldc;       // [n]
                     const float scale = p.scales_a[first + i];
                     if (bias != nullptr) {
#pragma GCC ivdep
                       for (int64_t j = 0; j < n; ++j)
                         to[j] = C(from[j] * scale * scales_b[j] + bias[j]);
                     } else {
#pragma GCC ivdep
                       for (int64_t j = 0; j < n; ++j) to[j] = C(from[j] * scale * scales_b[j]);
                     }
                   }
                 });
  }
}

#define OF_INSTANTIATE(T)                              \
  template void quantize_rows(const QuantizeRows<T>&); \
  template void matmul_fp8(const MatmulFp8<T>&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
