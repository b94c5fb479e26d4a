// A frozen matrix in FP8, and products with it: y = x W^T + bias, x quantised row by row as it
// comes (kernels/matmul_fp8). No gradient of its own: a linear layer (linear.h) has one such matrix
// for y and one, of W^T, for dx.
#pragma once
#include "engine/tensor/tensor.h"

namespace orthofed {

// Does the thread's device multiply FP8? The CPU does (in bf16, for its results, not for its
// speed), a GPU from compute capability 8.9 on.
bool multiplies_fp8();

class Fp8Matrix {
 public:
  Fp8Matrix() = default;
  // Of w [n, k], f32 or bf16, on the thread's device.
  explicit Fp8Matrix(const Tensor& w);

  bool defined() const { return values_.defined(); }
  // y [m, n] = x [m, k] W^T + bias, x and y bf16; bias f32 [n] or undefined.
  void multiply(const Tensor& x, const Tensor& bias, const Tensor& y) const;

 private:
  Tensor values_, scales_;  // u8 [n, k], f32 [n]
};

}  // namespace orthofed
