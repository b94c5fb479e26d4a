// Softmax over the last dimension:  y_j = exp(x_j - max x) / sum_k exp(x_k - max x).
// Instantiated for double, float and bf16.
#pragma once
#include <cstdint>

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
