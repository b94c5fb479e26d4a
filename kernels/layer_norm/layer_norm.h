// Layer normalisation over the last dimension (Ba, Kiros, Hinton, arXiv 1607.06450).
//
//   y = (x - mean) * rstd * gamma + beta,
//   mean = sum(x)/n,  rstd = 1/sqrt(sum((x-mean)^2)/n + eps)
//
// x lives in the residual stream (Accum<T>), y is the input of a matrix product (T).
// Instantiated for double, float and bf16. cols >= 1. A NaN or infinity spoils its own row alone.
//
// Error, with e = eps of Accum<T> (its spacing at 1), k = cols/16 + 8 (additions that one value
// passes through; cols in the naive GPU version) and X = max_j |x_j| rstd of the row:
//   forward          e (k X |gamma| + 2 |beta|) + eps(T)/2 |y|
//   backward         4 e k rstd max_j |g_j| (1 + X^2) + e |residual|
//   backward_affine  2 e (min(rows, 128) + 1 + k) sum_rows |dy| (|h| + 1)
//
// Per element: forward reads Accum<T> and writes T (6 bytes in bf16), 8 flops; backward reads T and
// twice Accum<T> and writes Accum<T> (14 bytes in bf16), 13 flops; backward_affine reads T and
// Accum<T>, 5 flops. On the CPU a row is read again from cache.
#pragma once
#include <cstdint>

#include "kernels/core/column_sum.h"
#include "kernels/core/cost.h"
#include "kernels/core/types.h"
#include "kernels/core/version.h"

namespace orthofed {

// The formula above. y must not be x.
template <class T>
struct LayerNormForward {
  const Accum<T>* x;  // [rows, cols] pitch ldx
  int64_t ldx;
  const Accum<T>*gamma, *beta;  // [cols]
  T* y;                         // [rows, cols] pitch ldy
  int64_t ldy;
  Accum<T>*mean, *rstd;  // [rows], which backward needs
  int64_t rows, cols;
  double eps;
};

// dx = residual + d(loss)/dx, in one pass: with g = dy * gamma and h = (x - mean) * rstd,
//   d(loss)/dx = rstd * (g - mean(g) - h * mean(g * h)).
// residual is the gradient that bypasses the norm; it may be dx.
template <class T>
struct LayerNormBackward {
  const T* dy;  // [rows, cols] pitch lddy
  int64_t lddy;
  const Accum<T>* x;  // [rows, cols] pitch ldx
  int64_t ldx;
  const Accum<T>* gamma;               // [cols]
  const Accum<T>*mean, *rstd;          // [rows], as forward wrote them
  const Accum<T>* residual = nullptr;  // [rows, cols] pitch ldr; null: none
  int64_t ldr = 0;
  Accum<T>* dx;  // [rows, cols] pitch lddx
  int64_t lddx;
  int64_t rows, cols;
};

// dgamma = sum_rows dy * h, dbeta = sum_rows dy. Only for training from scratch; a frozen affine
// never calls it. Scratch: layer_norm_backward_affine_scratch(rows, cols) bytes on a GPU.
template <class T>
struct LayerNormBackwardAffine {
  const T* dy;  // [rows, cols] pitch lddy
  int64_t lddy;
  const Accum<T>* x;  // [rows, cols] pitch ldx
  int64_t ldx;
  const Accum<T>*mean, *rstd;  // [rows], as forward wrote them
  Accum<T>*dgamma, *dbeta;     // [cols]
  bool accumulate;             // add to what is in dgamma and dbeta
  int64_t rows, cols;
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void layer_norm_forward(const LayerNormForward<T>& a);
template <class T>
void layer_norm_backward(const LayerNormBackward<T>& a);
template <class T>
void layer_norm_backward_affine(const LayerNormBackwardAffine<T>& a);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost layer_norm_forward(const LayerNormForward<T>& a) {
  const double n = double(a.rows) * a.cols;
  return {8 * n, moved(a.x, n) + moved(a.gamma, a.cols) + moved(a.beta, a.cols) + written(a.y, n) +
                     written(a.mean, a.rows) + written(a.rstd, a.rows)};
}
template <class T>
Cost layer_norm_backward(const LayerNormBackward<T>& a) {
  const double n = double(a.rows) * a.cols;
  return {13 * n, moved(a.dy, n) + moved(a.x, n) + moved(a.gamma, a.cols) + moved(a.mean, a.rows) +
                      moved(a.rstd, a.rows) + moved(a.residual, n) + written(a.dx, n)};
}
template <class T>
Cost layer_norm_backward_affine(const LayerNormBackwardAffine<T>& a) {
  const double n = double(a.rows) * a.cols;
  return {5 * n, moved(a.dy, n) + moved(a.x, n) + moved(a.mean, a.rows) + moved(a.rstd, a.rows) +
                     written(a.dgamma, a.cols, a.accumulate) +
                     written(a.dbeta, a.cols, a.accumulate)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void layer_norm_forward(const LayerNormForward<T>& a, const Stream& stream);
template <class T, class Stream>
void layer_norm_backward(const LayerNormBackward<T>& a, const Stream& stream);
template <class T, class Stream>
void layer_norm_backward_affine(const LayerNormBackwardAffine<T>& a, const Stream& stream);

inline size_t layer_norm_backward_affine_scratch(int64_t rows, int64_t cols) {
  return column_sum_scratch(rows, cols, 2);
}

// Every version of the first two, the naive one first.
template <class T, class Stream>
Ladder<LayerNormForward<T>, Stream> layer_norm_forward_versions();
template <class T, class Stream>
Ladder<LayerNormBackward<T>, Stream> layer_norm_backward_versions();

}  // namespace orthofed::gpu
