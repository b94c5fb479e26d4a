// The end of each half of a transformer block: LayerScale (Touvron et al., arXiv 2103.17239) and
// the residual sum, and the sums over rows that biases need.
//
//   y = x + gamma * z       (gamma null: y = x + z)
//
// x, y are the residual stream (Accum<T>), z the output of a matrix product (T).
// Instantiated for double, float and bf16.
//
// Error, with e = eps of Accum<T>: forward e/2 (|x| + 2 |gamma z|), backward (e + eps(T))/2 |dz|;
// the sums over rows e/2 (min(rows, 128) + 4) sum |term|: see column_sum in kernels/core/.
// Per element: forward reads and writes Accum<T> and reads T (10 bytes in bf16), 2 flops; backward
// reads Accum<T> and writes T (6 bytes in bf16), 1 flop; the sums read their terms once, 1 or 2
// flops.
#pragma once
#include <cstdint>

#include "kernels/core/column_sum.h"
#include "kernels/core/cost.h"
#include "kernels/core/types.h"

namespace orthofed::cpu {

// x, y [rows, cols] (y may be x), z [rows, cols], gamma [cols] or null.
template <class T>
void residual_forward(const Accum<T>* x, int64_t ldx, const T* z, int64_t ldz,
                      const Accum<T>* gamma, Accum<T>* y, int64_t ldy, int64_t rows, int64_t cols);

// dz = gamma * dy, rounded to T (gamma null: 1). dx = dy is the caller's: the buffer is passed on,
// not copied.
template <class T>
void residual_backward(const Accum<T>* dy, int64_t lddy, const Accum<T>* gamma, T* dz, int64_t lddz,
                       int64_t rows, int64_t cols);

// dgamma [cols] = sum_rows dy * z (added to what is there if accumulate), for training from
// scratch.
template <class T>
void residual_backward_gamma(const Accum<T>* dy, int64_t lddy, const T* z, int64_t ldz,
                             Accum<T>* dgamma, bool accumulate, int64_t rows, int64_t cols);

// db [cols] = sum_rows dy (added to what is there if accumulate), rows in fixed chunks.
template <class T>
void bias_backward(const T* dy, int64_t lddy, Accum<T>* db, bool accumulate, int64_t rows,
                   int64_t cols);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost residual_forward(const Accum<T>* x, int64_t, const T* z, int64_t, const Accum<T>* gamma,
                      Accum<T>* y, int64_t, int64_t rows, int64_t cols) {
  const double n = double(rows) * cols;
  return {2 * n, moved(x, n) + moved(z, n) + moved(gamma, cols) + written(y, n)};
}
template <class T>
Cost residual_backward(const Accum<T>* dy, int64_t, const Accum<T>* gamma, T* dz, int64_t,
                       int64_t rows, int64_t cols) {
  const double n = double(rows) * cols;
  return {n, moved(dy, n) + moved(gamma, cols) + written(dz, n)};
}
template <class T>
Cost residual_backward_gamma(const Accum<T>* dy, int64_t, const T* z, int64_t, Accum<T>* dgamma,
                             bool accumulate, int64_t rows, int64_t cols) {
  const double n = double(rows) * cols;
  return {2 * n, moved(dy, n) + moved(z, n) + written(dgamma, cols, accumulate)};
}
template <class T>
Cost bias_backward(const T* dy, int64_t, Accum<T>* db, bool accumulate, int64_t rows,
                   int64_t cols) {
  const double n = double(rows) * cols;
  return {n, moved(dy, n) + written(db, cols, accumulate)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void residual_forward(const Accum<T>* x, int64_t ldx, const T* z, int64_t ldz,
                      const Accum<T>* gamma, Accum<T>* y, int64_t ldy, int64_t rows, int64_t cols,
                      const Stream& stream);

template <class T, class Stream>
void residual_backward(const Accum<T>* dy, int64_t lddy, const Accum<T>* gamma, T* dz, int64_t lddz,
                       int64_t rows, int64_t cols, const Stream& stream);

// Scratch: residual_backward_gamma_scratch(rows, cols) bytes.
template <class T, class Stream>
void residual_backward_gamma(const Accum<T>* dy, int64_t lddy, const T* z, int64_t ldz,
                             Accum<T>* dgamma, bool accumulate, int64_t rows, int64_t cols,
                             const Stream& stream);
inline size_t residual_backward_gamma_scratch(int64_t rows, int64_t cols) {
  return column_sum_scratch(rows, cols);
}

// Scratch: bias_backward_scratch(rows, cols) bytes.
template <class T, class Stream>
void bias_backward(const T* dy, int64_t lddy, Accum<T>* db, bool accumulate, int64_t rows,
                   int64_t cols, const Stream& stream);
inline size_t bias_backward_scratch(int64_t rows, int64_t cols) {
  return column_sum_scratch(rows, cols);
}

}  // namespace orthofed::gpu
