// The end of each half of a transformer block: LayerScale (Touvron et al., arXiv 2103.17239) and
// the residual sum, and the sums over rows that biases need.
//
//   y = x + gamma * z       (gamma null: y = x + z)
//
// x, y are the residual stream (Accum<T>), z the output of a matrix product (T).
// Instantiated for double, float and bf16.
#pragma once
#include <cstdint>

#include "kernels/core/types.h"

namespace orthofed::cpu {

// x, y [rows, cols] (y may be x), z [rows, cols], gamma [cols] or null.
template <class T>
void residual_forward(const Accum<T>* x, int64_t ldx, const T* z, int64_t ldz,
                      const Accum<T>* gamma, Accum<T>* y, int64_t ldy, int64_t rows, int64_t cols);

// dz = gamma * dy, rounded to T. dx = dy is the caller's: the buffer is passed on, not copied.
template <class T>
void residual_backward(const Accum<T>* dy, int64_t lddy, const Accum<T>* gamma, T* dz, int64_t lddz,
                       int64_t rows, int64_t cols);

// dgamma = sum_rows dy * z, for training from scratch.
template <class T>
void residual_backward_gamma(const Accum<T>* dy, int64_t lddy, const T* z, int64_t ldz,
                             Accum<T>* dgamma, bool accumulate, int64_t rows, int64_t cols);

// db = sum_rows dy (added to what is there if accumulate), rows in fixed chunks.
template <class T>
void bias_backward(const T* dy, int64_t lddy, Accum<T>* db, bool accumulate, int64_t rows,
                   int64_t cols);

}  // namespace orthofed::cpu
