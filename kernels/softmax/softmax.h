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

namespace orthofed::cpu {

// x, y [rows, cols]; y may be x.
template <class T>
void softmax_forward(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols);

// dx = y * (dy - sum_j dy_j y_j); dx may be dy.
template <class T>
void softmax_backward(const T* dy, int64_t lddy, const T* y, int64_t ldy, T* dx, int64_t lddx,
                      int64_t rows, int64_t cols);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost softmax_forward(const T* x, int64_t, T* y, int64_t, int64_t rows, int64_t cols) {
  const double n = double(rows) * cols;
  return {45 * n, moved(x, n) + written(y, n)};
}
template <class T>
Cost softmax_backward(const T* dy, int64_t, const T* y, int64_t, T* dx, int64_t, int64_t rows,
                      int64_t cols) {
  const double n = double(rows) * cols;
  return {4 * n, moved(dy, n) + moved(y, n) + written(dx, n)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void softmax_forward(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols,
                     const Stream& stream);

template <class T, class Stream>
void softmax_backward(const T* dy, int64_t lddy, const T* y, int64_t ldy, T* dx, int64_t lddx,
                      int64_t rows, int64_t cols, const Stream& stream);

}  // namespace orthofed::gpu
