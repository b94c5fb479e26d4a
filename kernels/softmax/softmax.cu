// Softmax on a GPU: one warp a row (core/warp_row.cuh). A row of up to 1,536 elements is read once
// and stays in registers. The exponential is computed twice, as on the CPU: kept in T it would be
// rounded before the division. Bounded by the bytes and the exponentials alike: see softmax.h.
#include "kernels/softmax/softmax.h"

#include "kernels/core/math.h"
#include "kernels/core/warp_row.cuh"

namespace orthofed::gpu {
namespace {

template <class T, int kItems>
__global__ void forward_kernel(SoftmaxForward<T> a) {
  constexpr int N = kFullPack<T>;
  const int64_t i = warp_row_index();
  if (i >= a.rows) return;
  const WarpRow<T, N, kItems> xi(a.x + i * a.ldx, a.cols);  // [cols]
  T* yi = a.y + i * a.ldy;                                  // [cols]

  float top = -INFINITY;
  over_row<N, kItems>(a.cols, [&](int p, int64_t j) {
    const Pack<T, N> v = xi(p, j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e)
      if (j + e < a.cols) top = max_or_nan(top, float(v[e]));
  });
  top = warp_max(top);

  float sum = 0;
  over_row<N, kItems>(a.cols, [&](int p, int64_t j) {
    const Pack<T, N> v = xi(p, j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e)
      if (j + e < a.cols) sum += exp_(float(v[e]) - top);
  });
  const float inverse = 1.0f / warp_sum(sum);

  over_row<N, kItems>(a.cols, [&](int p, int64_t j) {
    const Pack<T, N> v = xi(p, j);  // [N]
    Pack<T, N> out;
#pragma unroll
    for (int e = 0; e < N; ++e) out[e] = T(exp_(float(v[e]) - top) * inverse);
    store_part(yi + j, out, a.cols - j);
  });
}

template <class T, int kItems>
__global__ void backward_kernel(SoftmaxBackward<T> a) {
  constexpr int N = kFullPack<T>;
  const int64_t i = warp_row_index();
  if (i >= a.rows) return;
  const WarpRow<T, N, kItems> dyi(a.dy + i * a.lddy, a.cols),
      yi(a.y + i * a.ldy, a.cols);  // [cols]
  T* dxi = a.dx + i * a.lddx;       // [cols]

  float dot = 0;
  over_row<N, kItems>(a.cols, [&](int p, int64_t j) {
    const Pack<T, N> d = dyi(p, j), v = yi(p, j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) dot += float(d[e]) * float(v[e]);
  });
  dot = warp_sum(dot);

  over_row<N, kItems>(a.cols, [&](int p, int64_t j) {
    const Pack<T, N> d = dyi(p, j), v = yi(p, j);  // [N]
    Pack<T, N> out;
#pragma unroll
    for (int e = 0; e < N; ++e) out[e] = T(float(v[e]) * (float(d[e]) - dot));
    store_part(dxi + j, out, a.cols - j);
  });
}

}  // namespace

template <class T, class Stream>
void softmax_forward(const SoftmaxForward<T>& a, const Stream& stream) {
  with_row_items(a.cols, [&]<int kItems>() {
    launch(forward_kernel<T, kItems>, warp_row_shape(a.rows), stream, a);
  });
}

template <class T, class Stream>
void softmax_backward(const SoftmaxBackward<T>& a, const Stream& stream) {
  with_row_items(a.cols, [&]<int kItems>() {
    launch(backward_kernel<T, kItems>, warp_row_shape(a.rows), stream, a);
  });
}

#define OF_INSTANTIATE(T)                                                    \
  template void softmax_forward(const SoftmaxForward<T>&, const OF_STREAM&); \
  template void softmax_backward(const SoftmaxBackward<T>&, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
