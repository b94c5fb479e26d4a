// 1, naive: one thread a row, as the formula says: mean, variance, result. The 32 threads of a warp
// read 32 different rows at once, so that every element costs a memory transaction of its own.
#pragma once
#include "kernels/core/gpu.cuh"
#include "kernels/layer_norm/layer_norm.h"

namespace orthofed::gpu {
namespace {

template <class T>
__global__ void naive_forward_kernel(LayerNormForward<T> a) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= a.rows) return;
  const float* x = a.x + i * a.ldx;  // [cols]
  T* y = a.y + i * a.ldy;            // [cols]
  float sum = 0;
  for (int64_t j = 0; j < a.cols; ++j) sum += x[j];
  const float mean = sum / float(a.cols);
  float squares = 0;
  for (int64_t j = 0; j < a.cols; ++j) squares += (x[j] - mean) * (x[j] - mean);
  const float rstd = 1.0f / sqrtf(squares / float(a.cols) + float(a.eps));
  for (int64_t j = 0; j < a.cols; ++j) y[j] = T((x[j] - mean) * rstd * a.gamma[j] + a.beta[j]);
  a.mean[i] = mean;
  a.rstd[i] = rstd;
}

template <class T>
__global__ void naive_backward_kernel(LayerNormBackward<T> a) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= a.rows) return;
  const T* dy = a.dy + i * a.lddy;   // [cols]
  const float* x = a.x + i * a.ldx;  // [cols]
  float* dx = a.dx + i * a.lddx;     // [cols]
  const float mean = a.mean[i], rstd = a.rstd[i];
  float mean_g = 0, mean_gh = 0;
  for (int64_t j = 0; j < a.cols; ++j) {
    const float g = float(dy[j]) * a.gamma[j];
    mean_g += g;
    mean_gh += g * ((x[j] - mean) * rstd);
  }
  mean_g /= float(a.cols);
  mean_gh /= float(a.cols);
  for (int64_t j = 0; j < a.cols; ++j) {
    const float g = float(dy[j]) * a.gamma[j], h = (x[j] - mean) * rstd;
    const float bypass = a.residual == nullptr ? 0.0f : a.residual[i * a.ldr + j];
    dx[j] = bypass + rstd * (g - mean_g - h * mean_gh);
  }
}

struct Naive {
  static constexpr int kThreads = 64;
  template <class T, class Stream>
  static void forward(const LayerNormForward<T>& a, const Stream& stream) {
    launch(naive_forward_kernel<T>, shape(a.rows), stream, a);
  }
  template <class T, class Stream>
  static void backward(const LayerNormBackward<T>& a, const Stream& stream) {
    launch(naive_backward_kernel<T>, shape(a.rows), stream, a);
  }
  static LaunchShape shape(int64_t rows) {
    return {.grid_x = unsigned(ceil_div(rows, kThreads)), .threads_x = kThreads};
  }
};

}  // namespace
}  // namespace orthofed::gpu
