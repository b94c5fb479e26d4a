// Matrix products in FP8 (e4m3) with a scale for every row:  C = diag(sa) (A B^T) diag(sb) + bias.
//
// quantize_rows makes such an operand of a matrix X [rows, k]: s_i = max_p |X_ip| / 448, which
// takes the largest of a row to e4m3's largest, and Q = e4m3(X_ip (448 / max)). Scaling by rows
// keeps a token, or an output, with large numbers from costing the others their bits; it is exact
// to take out of the sum because both rows lie along k, as Hopper's FP8 instructions demand of
// their operands anyway. So a frozen W [out, in] is quantised twice: its rows for y = x W^T, those
// of W^T for dx = dy W. Formats: core/fp8.h (Micikevicius et al., arXiv 2209.05433, who scale a
// whole tensor instead).
//
// Rows lie a multiple of 16 bytes apart, and a row's bytes from k to the next such multiple are
// zero: quantize_rows writes them, and products read whole packs.
//
// Error. Of one number: |X - s Q| <= max(2^-4 |X|, 2^-10 s) (1 + 4 eps): half of e4m3's spacing,
// relative above 2^-6 s and absolute below. Of a product, for the Q and s that are given:
//
//   |C - exact| <= ((k + 4) eps/2 + d) sa_i sb_j sum_p |A_ip B_jp| + eps/2 |bias| + eps(C)/2 |C|
//
// with eps of float, and d = 0 on cpu and simt. A GPU's tensor core keeps about 14 bits of a sum of
// e4m3 products (DeepSeek-V3, arXiv 2412.19437, section 3.3.2), so the kernels have it sum at most
// 128 products, and add those sums in float; d <= 132 * 2^-13 then, if each of the products and of
// the four instructions' sums loses what lies below the largest one's 13th bit. NaN and infinity in
// a row of X make the row of C NaN. Same bits at every run.
//
// 2 m n k flops; A and B are read once and C is written once, at half of bf16's bytes for A and B.
// quantize_rows: sizeof(T) + 1 bytes and 3 flops an element.
#pragma once
#include "kernels/core/cost.h"
#include "kernels/core/fp8.h"
#include "kernels/matmul/matmul.h"

namespace orthofed {

// T in {float, bf16}. A row whose largest magnitude is below 448 * 2^-126 has the scale 1 (and
// becomes zero).
template <class T>
struct QuantizeRows {
  const T* x;  // [rows, cols] pitch ldx
  int64_t ldx;
  e4m3* q;  // [rows, cols] pitch ldq, a multiple of 16 bytes
  int64_t ldq;
  float* scales;  // [rows]
  int64_t rows, cols;
};

// C in {float, bf16}. Bases and pitches of A and B are multiples of 16 bytes, and rows are zero
// from k to there; C is apart from the rest in memory. On the CPU, where no instruction multiplies
// e4m3, it is a product in bf16, which holds every e4m3 exactly; slower than one of bf16 matrices,
// because it has the numbers to convert and the scales to apply. On a GPU only where
// multiplies_fp8(stream).
template <class C>
struct MatmulFp8 {
  const e4m3* a;          // [m, k]
  const float* scales_a;  // [m]
  const e4m3* b;          // [n, k]
  const float* scales_b;  // [n]
  C* c;                   // [m, n]
  const float* bias;      // [n]; null: none
  MatmulShape shape;      // op_a none, op_b transpose
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void quantize_rows(const QuantizeRows<T>& a);
template <class C>
void matmul_fp8(const MatmulFp8<C>& p);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost quantize_rows(const QuantizeRows<T>& a) {
  const double n = double(a.rows) * a.cols;
  return {3 * n, moved(a.x, n) + written(a.q, n) + written(a.scales, a.rows)};
}
template <class C>
Cost matmul_fp8(const MatmulFp8<C>& p) {
  const MatmulShape& s = p.shape;
  return {2.0 * s.m * s.n * s.k, moved(p.a, double(s.m) * s.k) + moved(p.scales_a, s.m) +
                                     moved(p.b, double(s.n) * s.k) + moved(p.scales_b, s.n) +
                                     moved(p.bias, s.n) + written(p.c, double(s.m) * s.n)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void quantize_rows(const QuantizeRows<T>& a, const Stream& stream);
template <class C, class Stream>
void matmul_fp8(const MatmulFp8<C>& p, const Stream& stream);

// Every version of the product.
template <class C, class Stream>
Ladder<MatmulFp8<C>, Stream> matmul_fp8_versions();

// Does the device have FP8 products? From compute capability 8.9 (Ada, Hopper) on.
template <class Stream>
bool multiplies_fp8(const Stream& stream);

}  // namespace orthofed::gpu
