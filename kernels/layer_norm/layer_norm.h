// Layer normalisation over the last dimension (Ba, Kiros, Hinton, arXiv 1607.06450).
//
//   y = (x - mean) * rstd * gamma + beta,   mean = sum(x)/n,  rstd = 1/sqrt(sum((x-mean)^2)/n +
//   eps)
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
// twice Accum<T> and writes Accum<T> (14 bytes in bf16), 13 flops; backward_affine reads T
// and Accum<T>, 5 flops. On the CPU a row is read again from cache.
#pragma once
#include <cstdint>
#include <span>

#include "kernels/core/column_sum.h"
#include "kernels/core/cost.h"
#include "kernels/core/types.h"
#include "kernels/core/version.h"

namespace orthofed::cpu {

// x [rows, cols] pitch ldx; gamma, beta [cols]; y [rows, cols] pitch ldy; mean, rstd [rows], which
// backward needs. y must not be x.
template <class T>
void layer_norm_forward(const Accum<T>* x, int64_t ldx, const Accum<T>* gamma, const Accum<T>* beta,
                        T* y, int64_t ldy, Accum<T>* mean, Accum<T>* rstd, int64_t rows,
                        int64_t cols, double eps);

// dx = residual + d(loss)/dx, in one pass: with g = dy * gamma and h = (x - mean) * rstd,
//   d(loss)/dx = rstd * (g - mean(g) - h * mean(g * h)).
// residual [rows, cols] pitch ldr is the gradient that bypasses the norm (null: none; may be dx).
// dy [rows, cols] pitch lddy, dx [rows, cols] pitch lddx; mean, rstd as forward wrote them.
template <class T>
void layer_norm_backward(const T* dy, int64_t lddy, const Accum<T>* x, int64_t ldx,
                         const Accum<T>* gamma, const Accum<T>* mean, const Accum<T>* rstd,
                         const Accum<T>* residual, int64_t ldr, Accum<T>* dx, int64_t lddx,
                         int64_t rows, int64_t cols);

// dgamma = sum_rows dy * h, dbeta = sum_rows dy (added to what is there if accumulate). Only for
// training from scratch; a frozen affine never calls it.
template <class T>
void layer_norm_backward_affine(const T* dy, int64_t lddy, const Accum<T>* x, int64_t ldx,
                                const Accum<T>* mean, const Accum<T>* rstd, Accum<T>* dgamma,
                                Accum<T>* dbeta, bool accumulate, int64_t rows, int64_t cols);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost layer_norm_forward(const Accum<T>* x, int64_t, const Accum<T>* gamma, const Accum<T>* beta,
                        T* y, int64_t, Accum<T>* mean, Accum<T>* rstd, int64_t rows, int64_t cols,
                        double) {
  const double n = double(rows) * cols;
  return {8 * n, moved(x, n) + moved(gamma, cols) + moved(beta, cols) + written(y, n) +
                     written(mean, rows) + written(rstd, rows)};
}
template <class T>
Cost layer_norm_backward(const T* dy, int64_t, const Accum<T>* x, int64_t, const Accum<T>* gamma,
                         const Accum<T>* mean, const Accum<T>* rstd, const Accum<T>* residual,
                         int64_t, Accum<T>* dx, int64_t, int64_t rows, int64_t cols) {
  const double n = double(rows) * cols;
  return {13 * n, moved(dy, n) + moved(x, n) + moved(gamma, cols) + moved(mean, rows) +
                      moved(rstd, rows) + moved(residual, n) + written(dx, n)};
}
template <class T>
Cost layer_norm_backward_affine(const T* dy, int64_t, const Accum<T>* x, int64_t,
                                const Accum<T>* mean, const Accum<T>* rstd, Accum<T>* dgamma,
                                Accum<T>* dbeta, bool accumulate, int64_t rows, int64_t cols) {
  const double n = double(rows) * cols;
  return {5 * n, moved(dy, n) + moved(x, n) + moved(mean, rows) + moved(rstd, rows) +
                     written(dgamma, cols, accumulate) + written(dbeta, cols, accumulate)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void layer_norm_forward(const Accum<T>* x, int64_t ldx, const Accum<T>* gamma, const Accum<T>* beta,
                        T* y, int64_t ldy, Accum<T>* mean, Accum<T>* rstd, int64_t rows,
                        int64_t cols, double eps, const Stream& stream);

template <class T, class Stream>
void layer_norm_backward(const T* dy, int64_t lddy, const Accum<T>* x, int64_t ldx,
                         const Accum<T>* gamma, const Accum<T>* mean, const Accum<T>* rstd,
                         const Accum<T>* residual, int64_t ldr, Accum<T>* dx, int64_t lddx,
                         int64_t rows, int64_t cols, const Stream& stream);

// Scratch: layer_norm_backward_affine_scratch(rows, cols) bytes.
template <class T, class Stream>
void layer_norm_backward_affine(const T* dy, int64_t lddy, const Accum<T>* x, int64_t ldx,
                                const Accum<T>* mean, const Accum<T>* rstd, Accum<T>* dgamma,
                                Accum<T>* dbeta, bool accumulate, int64_t rows, int64_t cols,
                                const Stream& stream);
inline size_t layer_norm_backward_affine_scratch(int64_t rows, int64_t cols) {
  return column_sum_scratch(rows, cols, 2);
}

// Every version of the first two, the naive one first.
template <class T, class Stream>
using LayerNormForwardRun = void(const Accum<T>* x, int64_t ldx, const Accum<T>* gamma,
                                 const Accum<T>* beta, T* y, int64_t ldy, Accum<T>* mean,
                                 Accum<T>* rstd, int64_t rows, int64_t cols, double eps,
                                 const Stream& stream);
template <class T, class Stream>
std::span<const Version<LayerNormForwardRun<T, Stream>>> layer_norm_forward_versions();

template <class T, class Stream>
using LayerNormBackwardRun = void(const T* dy, int64_t lddy, const Accum<T>* x, int64_t ldx,
                                  const Accum<T>* gamma, const Accum<T>* mean, const Accum<T>* rstd,
                                  const Accum<T>* residual, int64_t ldr, Accum<T>* dx, int64_t lddx,
                                  int64_t rows, int64_t cols, const Stream& stream);
template <class T, class Stream>
std::span<const Version<LayerNormBackwardRun<T, Stream>>> layer_norm_backward_versions();

}  // namespace orthofed::gpu
