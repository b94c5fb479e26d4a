// Every element by itself, a warp 32 neighbouring packs of a row (core/rows.cuh): a thread takes a
// pack of the gate and the pack of `up` that is `cols` further on. The bytes bound it.
#include "kernels/swiglu/swiglu.h"

#include "kernels/core/rows.cuh"
#include "kernels/swiglu/swiglu_form.h"

namespace orthofed::gpu {
namespace {

template <class T>
__global__ void forward_kernel(SwigluForward<T> a) {
  constexpr int N = kFullPack<T>;
  for_each_pack<N>(a.rows, a.cols, [&](int64_t i, int64_t j) {
    Pack<T, N> g = load_part<N>(a.x + i * a.ldx + j, a.cols - j);                 // [N]
    const Pack<T, N> u = load_part<N>(a.x + i * a.ldx + a.cols + j, a.cols - j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) g[e] = T(swiglu(float(g[e]), float(u[e])));
    store_part(a.y + i * a.ldy + j, g, a.cols - j);
  });
}

template <class T>
__global__ void backward_kernel(SwigluBackward<T> a) {
  constexpr int N = kFullPack<T>;
  for_each_pack<N>(a.rows, a.cols, [&](int64_t i, int64_t j) {
    const Pack<T, N> d = load_part<N>(a.dy + i * a.lddy + j, a.cols - j);   // [N]
    Pack<T, N> g = load_part<N>(a.x + i * a.ldx + j, a.cols - j);           // [N]
    Pack<T, N> u = load_part<N>(a.x + i * a.ldx + a.cols + j, a.cols - j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const auto gradient = swiglu_gradient(float(d[e]), float(g[e]), float(u[e]));
      g[e] = T(gradient.gate);
      u[e] = T(gradient.up);
    }
    store_part(a.dx + i * a.lddx + j, g, a.cols - j);
    store_part(a.dx + i * a.lddx + a.cols + j, u, a.cols - j);
  });
}

}  // namespace

template <class T, class Stream>
void swiglu_forward(const SwigluForward<T>& a, const Stream& stream) {
  launch(forward_kernel<T>, map_shape<kFullPack<T>>(a.rows, a.cols), stream, a);
}

template <class T, class Stream>
void swiglu_backward(const SwigluBackward<T>& a, const Stream& stream) {
  launch(backward_kernel<T>, map_shape<kFullPack<T>>(a.rows, a.cols), stream, a);
}

#define OF_INSTANTIATE(T)                                                  \
  template void swiglu_forward(const SwigluForward<T>&, const OF_STREAM&); \
  template void swiglu_backward(const SwigluBackward<T>&, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
