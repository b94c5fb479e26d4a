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

namespace orthofed {

// y may be x.
template <class T>
struct ResidualForward {
  const Accum<T>* x;  // [rows, cols] pitch ldx
  int64_t ldx;
  const T* z;  // [rows, cols] pitch ldz
  int64_t ldz;
  const Accum<T>* gamma = nullptr;  // [cols]; null: 1
  Accum<T>* y;                      // [rows, cols] pitch ldy
  int64_t ldy;
  int64_t rows, cols;
};

// dz = gamma * dy, rounded to T. dx = dy is the caller's: the buffer is passed on, not copied.
template <class T>
struct ResidualBackward {
  const Accum<T>* dy;  // [rows, cols] pitch lddy
  int64_t lddy;
  const Accum<T>* gamma = nullptr;  // [cols]; null: 1
  T* dz;                            // [rows, cols] pitch lddz
  int64_t lddz;
  int64_t rows, cols;
};

// dgamma = sum_rows dy * z, for training from scratch.
// Scratch on a GPU: residual_backward_gamma_scratch(rows, cols) bytes.
template <class T>
struct ResidualBackwardGamma {
  const Accum<T>* dy;  // [rows, cols] pitch lddy
  int64_t lddy;
  const T* z;  // [rows, cols] pitch ldz
  int64_t ldz;
  Accum<T>* dgamma;         // [cols]
  bool accumulate = false;  // add to what is in dgamma
  int64_t rows, cols;
};

// db = sum_rows dy, rows in fixed chunks.
// Scratch on a GPU: bias_backward_scratch(rows, cols) bytes.
template <class T>
struct BiasBackward {
  const T* dy;  // [rows, cols] pitch lddy
  int64_t lddy;
  Accum<T>* db;             // [cols]
  bool accumulate = false;  // add to what is in db
  int64_t rows, cols;
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void residual_forward(const ResidualForward<T>& a);
template <class T>
void residual_backward(const ResidualBackward<T>& a);
template <class T>
void residual_backward_gamma(const ResidualBackwardGamma<T>& a);
template <class T>
void bias_backward(const BiasBackward<T>& a);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost residual_forward(const ResidualForward<T>& a) {
  const double n = double(a.rows) * a.cols;
  return {2 * n, moved(a.x, n) + moved(a.z, n) + moved(a.gamma, a.cols) + written(a.y, n)};
}
template <class T>
Cost residual_backward(const ResidualBackward<T>& a) {
  const double n = double(a.rows) * a.cols;
  return {n, moved(a.dy, n) + moved(a.gamma, a.cols) + written(a.dz, n)};
}
template <class T>
Cost residual_backward_gamma(const ResidualBackwardGamma<T>& a) {
  const double n = double(a.rows) * a.cols;
  return {2 * n, moved(a.dy, n) + moved(a.z, n) + written(a.dgamma, a.cols, a.accumulate)};
}
template <class T>
Cost bias_backward(const BiasBackward<T>& a) {
  const double n = double(a.rows) * a.cols;
  return {n, moved(a.dy, n) + written(a.db, a.cols, a.accumulate)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void residual_forward(const ResidualForward<T>& a, const Stream& stream);
template <class T, class Stream>
void residual_backward(const ResidualBackward<T>& a, const Stream& stream);
template <class T, class Stream>
void residual_backward_gamma(const ResidualBackwardGamma<T>& a, const Stream& stream);
template <class T, class Stream>
void bias_backward(const BiasBackward<T>& a, const Stream& stream);

inline size_t residual_backward_gamma_scratch(int64_t rows, int64_t cols) {
  return column_sum_scratch(rows, cols);
}
inline size_t bias_backward_scratch(int64_t rows, int64_t cols) {
  return column_sum_scratch(rows, cols);
}

}  // namespace orthofed::gpu
