// 2, a warp a row: its lanes read 32 neighbours in one transaction, 32 rows' worth of threads work
// where one did, and shuffles add up their sums. Every pass reads the row again, from cache at
// best.
#pragma once
#include "kernels/core/warp_row.cuh"
#include "kernels/layer_norm/layer_norm.h"

namespace orthofed::gpu {
namespace {

template <class T>
__global__ void warp_forward_kernel(LayerNormForward<T> a) {
  const int64_t i = warp_row_index();
  if (i >= a.rows) return;
  const int lane = int(threadIdx.x);
  const float* x = a.x + i * a.ldx;  // [cols]
  T* y = a.y + i * a.ldy;            // [cols]
  float sum = 0;
  for (int64_t j = lane; j < a.cols; j += 32) sum += x[j];
  const float mean = warp_sum(sum) / float(a.cols);
  float squares = 0;
  for (int64_t j = lane; j < a.cols; j += 32) squares += (x[j] - mean) * (x[j] - mean);
  const float rstd = 1.0f / sqrtf(warp_sum(squares) / float(a.cols) + float(a.eps));
  for (int64_t j = lane; j < a.cols; j += 32)
    y[j] = T((x[j] - mean) * rstd * a.gamma[j] + a.beta[j]);
  if (lane == 0) {
    a.mean[i] = mean;
    a.rstd[i] = rstd;
  }
}

template <class T>
__global__ void warp_backward_kernel(LayerNormBackward<T> a) {
  const int64_t i = warp_row_index();
  if (i >= a.rows) return;
  const int lane = int(threadIdx.x);
  const T* dy = a.dy + i * a.lddy;   // [cols]
  const float* x = a.x + i * a.ldx;  // [cols]
  float* dx = a.dx + i * a.lddx;     // [cols]
  const float mean = a.mean[i], rstd = a.rstd[i];
  float sum_g = 0, sum_gh = 0;
  for (int64_t j = lane; j < a.cols; j += 32) {
    const float g = float(dy[j]) * a.gamma[j];
    sum_g += g;
    sum_gh += g * ((x[j] - mean) * rstd);
  }
  const float mean_g = warp_sum(sum_g) / float(a.cols);
  const float mean_gh = warp_sum(sum_gh) / float(a.cols);
  for (int64_t j = lane; j < a.cols; j += 32) {
    const float g = float(dy[j]) * a.gamma[j], h = (x[j] - mean) * rstd;
    const float bypass = a.residual == nullptr ? 0.0f : a.residual[i * a.ldr + j];
    dx[j] = bypass + rstd * (g - mean_g - h * mean_gh);
  }
}

struct WarpPerRow {
  template <class T, class Stream>
  static void forward(const LayerNormForward<T>& a, const Stream& stream) {
    launch(warp_forward_kernel<T>, warp_row_shape(a.rows), stream, a);
  }
  template <class T, class Stream>
  static void backward(const LayerNormBackward<T>& a, const Stream& stream) {
    launch(warp_backward_kernel<T>, warp_row_shape(a.rows), stream, a);
  }
};

}  // namespace
}  // namespace orthofed::gpu
