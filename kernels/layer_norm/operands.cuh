// The arguments of one call, as every version's kernels take them. Names and shapes: layer_norm.h.
#pragma once
#include "kernels/core/warp.cuh"

namespace orthofed::gpu {
namespace {

template <class T>
struct LayerNormForward {
  const float* x;  // [rows, cols]
  int64_t ldx;
  const float *gamma, *beta;  // [cols]
  T* y;                       // [rows, cols]
  int64_t ldy;
  float *mean, *rstd;  // [rows]
  int64_t rows, cols;
  float eps;
};

template <class T>
struct LayerNormBackward {
  const T* dy;  // [rows, cols]
  int64_t lddy;
  const float* x;  // [rows, cols]
  int64_t ldx;
  const float *gamma, *mean, *rstd;  // [cols], [rows], [rows]
  const float* residual;             // [rows, cols] or null
  int64_t ldr;
  float* dx;  // [rows, cols]
  int64_t lddx;
  int64_t rows, cols;
};

}  // namespace
}  // namespace orthofed::gpu
