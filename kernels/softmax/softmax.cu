// Softmax on a GPU: one warp a row (core/warp_row.cuh). A row of up to 1,536 elements is read once
// and stays in registers. The exponential is computed twice, as on the CPU: kept in T it would be
// rounded before the division. Bounded by the bytes and the exponentials alike: see softmax.h.
#include "kernels/softmax/softmax.h"

#include "kernels/core/math.h"
#include "kernels/core/warp_row.cuh"

namespace orthofed::gpu {
namespace {

template <class T, int kItems>
__global__ void forward_kernel(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows,
                               int64_t cols) {
  constexpr int N = kFullPack<T>;
  const int64_t i = warp_row_index();
  if (i >= rows) return;
  const WarpRow<T, N, kItems> xi(x + i * ldx, cols);  // [cols]
  T* yi = y + i * ldy;                                // [cols]

  float top = -INFINITY;
  over_row<N, kItems>(cols, [&](int p, int64_t j) {
    const Pack<T, N> v = xi(p, j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e)
      if (j + e < cols) top = max_or_nan(top, float(v[e]));
  });
  top = warp_max(top);

  float sum = 0;
  over_row<N, kItems>(cols, [&](int p, int64_t j) {
    const Pack<T, N> v = xi(p, j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e)
      if (j + e < cols) sum += exp_(float(v[e]) - top);
  });
  const float inverse = 1.0f / warp_sum(sum);

  over_row<N, kItems>(cols, [&](int p, int64_t j) {
    const Pack<T, N> v = xi(p, j);  // [N]
    Pack<T, N> out;
#pragma unroll
    for (int e = 0; e < N; ++e) out[e] = T(exp_(float(v[e]) - top) * inverse);
    store_part(yi + j, out, cols - j);
  });
}

template <class T, int kItems>
__global__ void backward_kernel(const T* dy, int64_t lddy, const T* y, int64_t ldy, T* dx,
                                int64_t lddx, int64_t rows, int64_t cols) {
  constexpr int N = kFullPack<T>;
  const int64_t i = warp_row_index();
  if (i >= rows) return;
  const WarpRow<T, N, kItems> dyi(dy + i * lddy, cols), yi(y + i * ldy, cols);  // [cols]
  T* dxi = dx + i * lddx;                                                       // [cols]

  float dot = 0;
  over_row<N, kItems>(cols, [&](int p, int64_t j) {
    const Pack<T, N> d = dyi(p, j), v = yi(p, j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) dot += float(d[e]) * float(v[e]);
  });
  dot = warp_sum(dot);

  over_row<N, kItems>(cols, [&](int p, int64_t j) {
    const Pack<T, N> d = dyi(p, j), v = yi(p, j);  // [N]
    Pack<T, N> out;
#pragma unroll
    for (int e = 0; e < N; ++e) out[e] = T(float(v[e]) * (float(d[e]) - dot));
    store_part(dxi + j, out, cols - j);
  });
}

}  // namespace

template <class T, class Stream>
void softmax_forward(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols,
                     const Stream& stream) {
  with_row_items(cols, [&]<int kItems>() {
    launch(forward_kernel<T, kItems>, warp_row_shape(rows), stream, x, ldx, y, ldy, rows, cols);
  });
}

template <class T, class Stream>
void softmax_backward(const T* dy, int64_t lddy, const T* y, int64_t ldy, T* dx, int64_t lddx,
                      int64_t rows, int64_t cols, const Stream& stream) {
  with_row_items(cols, [&]<int kItems>() {
    launch(backward_kernel<T, kItems>, warp_row_shape(rows), stream, dy, lddy, y, ldy, dx, lddx,
           rows, cols);
  });
}

#define OF_INSTANTIATE(T)                                                                       \
  template void softmax_forward<T>(const T*, int64_t, T*, int64_t, int64_t, int64_t,            \
                                   const OF_STREAM&);                                           \
  template void softmax_backward<T>(const T*, int64_t, const T*, int64_t, T*, int64_t, int64_t, \
                                    int64_t, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
