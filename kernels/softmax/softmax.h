// Softmax over the last dimension:  y_j = exp(x_j - max x) / sum_k exp(x_k - max x).
// Instantiated for double, float and bf16. A logit of -infinity has probability 0; a NaN, or a row
// of nothing but -infinity, makes the whole row NaN. cols >= 1.
//
// Error, with e = eps of Accum<T>: forward (e (cols/16 + 8 + max_j |x_j - max x|) + eps(T)/2) y;
// backward e (cols/16 + 8) y (|dy| + sum_j |dy_j y_j|) + eps(T)/2 |dx|.
// Per element: forward 2 sizeof(T) bytes, about 45 flops (two exponentials); backward 3 sizeof(T)
// bytes, 4 flops.
#pragma once
#include <cstdint>

#include "kernels/core/cost.h"
#include "kernels/core/types.h"

namespace orthofed {

// y may be x.
template <class T>
struct SoftmaxForward {
  const T* x;  // [rows, cols] pitch ldx
  int64_t ldx;
  T* y;  // [rows, cols] pitch ldy
  int64_t ldy;
  int64_t rows, cols;
};

// dx = y * (dy - sum_j dy_j y_j). dx may be dy.
template <class T>
struct SoftmaxBackward {
  const T* dy;  // [rows, cols] pitch lddy
  int64_t lddy;
  const T* y;  // [rows, cols] pitch ldy, as forward wrote it
  int64_t ldy;
  T* dx;  // [rows, cols] pitch lddx
  int64_t lddx;
  int64_t rows, cols;
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void softmax_forward(const SoftmaxForward<T>& a);
template <class T>
void softmax_backward(const SoftmaxBackward<T>& a);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost softmax_forward(const SoftmaxForward<T>& a) {
  const double n = double(a.rows) * a.cols;
  return {45 * n, moved(a.x, n) + written(a.y, n)};
}
template <class T>
Cost softmax_backward(const SoftmaxBackward<T>& a) {
  const double n = double(a.rows) * a.cols;
  return {4 * n, moved(a.dy, n) + moved(a.y, n) + written(a.dx, n)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void softmax_forward(const SoftmaxForward<T>& a, const Stream& stream);
template <class T, class Stream>
void softmax_backward(const SoftmaxBackward<T>& a, const Stream& stream);

}  // namespace orthofed::gpu
