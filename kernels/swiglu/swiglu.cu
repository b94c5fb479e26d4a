// Every element by itself, a warp 32 neighbouring packs of a row (core/rows.cuh): a thread takes a
// pack of the gate and the pack of `up` that is `cols` further on. The bytes bound it.
#include "kernels/swiglu/swiglu.h"

#include "kernels/core/rows.cuh"
#include "kernels/swiglu/swiglu_form.h"

namespace orthofed::gpu {
namespace {

template <class T>
__global__ void forward_kernel(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows,
                               int64_t cols) {
  constexpr int N = kFullPack<T>;
  for_each_pack<N>(rows, cols, [&](int64_t i, int64_t j) {
    Pack<T, N> g = load_part<N>(x + i * ldx + j, cols - j);               // [N]
    const Pack<T, N> u = load_part<N>(x + i * ldx + cols + j, cols - j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) g[e] = T(swiglu(float(g[e]), float(u[e])));
    store_part(y + i * ldy + j, g, cols - j);
  });
}

template <class T>
__global__ void backward_kernel(const T* dy, int64_t lddy, const T* x, int64_t ldx, T* dx,
                                int64_t lddx, int64_t rows, int64_t cols) {
  constexpr int N = kFullPack<T>;
  for_each_pack<N>(rows, cols, [&](int64_t i, int64_t j) {
    const Pack<T, N> d = load_part<N>(dy + i * lddy + j, cols - j);  // [N]
    Pack<T, N> g = load_part<N>(x + i * ldx + j, cols - j);          // [N]
    Pack<T, N> u = load_part<N>(x + i * ldx + cols + j, cols - j);   // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const auto gradient = swiglu_gradient(float(d[e]), float(g[e]), float(u[e]));
      g[e] = T(gradient.gate);
      u[e] = T(gradient.up);
    }
    store_part(dx + i * lddx + j, g, cols - j);
    store_part(dx + i * lddx + cols + j, u, cols - j);
  });
}

}  // namespace

template <class T, class Stream>
void swiglu_forward(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols,
                    const Stream& stream) {
  launch(forward_kernel<T>, map_shape<kFullPack<T>>(rows, cols), stream, x, ldx, y, ldy, rows,
         cols);
}

template <class T, class Stream>
void swiglu_backward(const T* dy, int64_t lddy, const T* x, int64_t ldx, T* dx, int64_t lddx,
                     int64_t rows, int64_t cols, const Stream& stream) {
  launch(backward_kernel<T>, map_shape<kFullPack<T>>(rows, cols), stream, dy, lddy, x, ldx, dx,
         lddx, rows, cols);
}

#define OF_INSTANTIATE(T)                                                                      \
  template void swiglu_forward<T>(const T*, int64_t, T*, int64_t, int64_t, int64_t,            \
                                  const OF_STREAM&);                                           \
  template void swiglu_backward<T>(const T*, int64_t, const T*, int64_t, T*, int64_t, int64_t, \
                                   int64_t, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
