// 3, registers: the row is read once, 16 bytes an instruction, and stays in registers for all
// passes. Memory sees each element once, and all of a row's loads are in flight before the first is
// needed. (Rows of more than 1,536 elements are read again in every pass: core/warp_row.cuh.)
#pragma once
#include "kernels/core/warp_row.cuh"
#include "kernels/layer_norm/layer_norm.h"

namespace orthofed::gpu {
namespace {

constexpr int N = 4;  // elements of a pack: 16 bytes of the residual stream

template <class T, int kItems>
__global__ void register_forward_kernel(LayerNormForward<T> a) {
  const int64_t i = warp_row_index(), cols = a.cols;
  if (i >= a.rows) return;
  const WarpRow<float, N, kItems> x(a.x + i * a.ldx, cols);  // [cols]
  T* y = a.y + i * a.ldy;                                    // [cols]
  float sum = 0;
  over_row<N, kItems>(cols, [&](int p, int64_t j) {
    const Pack<float, N> xs = x(p, j);  // [N], 0 beyond the row
#pragma unroll
    for (int e = 0; e < N; ++e) sum += xs[e];
  });
  const float mean = warp_sum(sum) / float(cols);
  float squares = 0;
  over_row<N, kItems>(cols, [&](int p, int64_t j) {
    const Pack<float, N> xs = x(p, j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e)
      if (j + e < cols) squares += (xs[e] - mean) * (xs[e] - mean);
  });
  const float rstd = 1.0f / sqrtf(warp_sum(squares) / float(cols) + float(a.eps));
  over_row<N, kItems>(cols, [&](int p, int64_t j) {
    const Pack<float, N> xs = x(p, j);                                 // [N]
    const Pack<float, N> gamma = load_part<N>(a.gamma + j, cols - j);  // [N]
    const Pack<float, N> beta = load_part<N>(a.beta + j, cols - j);    // [N]
    Pack<T, N> out;                                                    // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) out[e] = T((xs[e] - mean) * rstd * gamma[e] + beta[e]);
    store_part(y + j, out, cols - j);
  });
  if (threadIdx.x == 0) {
    a.mean[i] = mean;
    a.rstd[i] = rstd;
  }
}

template <class T, int kItems>
__global__ void register_backward_kernel(LayerNormBackward<T> a) {
  const int64_t i = warp_row_index(), cols = a.cols;
  if (i >= a.rows) return;
  const WarpRow<T, N, kItems> dy(a.dy + i * a.lddy, cols);   // [cols]
  const WarpRow<float, N, kItems> x(a.x + i * a.ldx, cols);  // [cols]
  float* dx = a.dx + i * a.lddx;                             // [cols]
  const float mean = a.mean[i], rstd = a.rstd[i];
  float sum_g = 0, sum_gh = 0;
  over_row<N, kItems>(cols, [&](int p, int64_t j) {
    const Pack<T, N> dys = dy(p, j);                                   // [N], 0 beyond the row
    const Pack<float, N> xs = x(p, j);                                 // [N]
    const Pack<float, N> gamma = load_part<N>(a.gamma + j, cols - j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const float g = float(dys[e]) * gamma[e];
      sum_g += g;
      sum_gh += g * ((xs[e] - mean) * rstd);
    }
  });
  const float mean_g = warp_sum(sum_g) / float(cols);
  const float mean_gh = warp_sum(sum_gh) / float(cols);
  over_row<N, kItems>(cols, [&](int p, int64_t j) {
    const Pack<T, N> dys = dy(p, j);                                   // [N]
    const Pack<float, N> xs = x(p, j);                                 // [N]
    const Pack<float, N> gamma = load_part<N>(a.gamma + j, cols - j);  // [N]
    Pack<float, N> out{};                                              // [N]
    if (a.residual != nullptr) out = load_part<N>(a.residual + i * a.ldr + j, cols - j);
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const float g = float(dys[e]) * gamma[e], h = (xs[e] - mean) * rstd;
      out[e] += rstd * (g - mean_g - h * mean_gh);
    }
    store_part(dx + j, out, cols - j);
  });
}

struct Registers {
  template <class T, class Stream>
  static void forward(const LayerNormForward<T>& a, const Stream& stream) {
    with_row_items(a.cols, [&]<int kItems>() {
      launch(register_forward_kernel<T, kItems>, warp_row_shape(a.rows), stream, a);
    });
  }
  template <class T, class Stream>
  static void backward(const LayerNormBackward<T>& a, const Stream& stream) {
    with_row_items(a.cols, [&]<int kItems>() {
      launch(register_backward_kernel<T, kItems>, warp_row_shape(a.rows), stream, a);
    });
  }
};

}  // namespace
}  // namespace orthofed::gpu
