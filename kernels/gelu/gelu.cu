// GELU on a GPU: every element by itself, a warp 32 neighbouring packs of a row (core/rows.cuh).
//
// The bytes are 4 (forward) and 6 (backward) an element in bf16. The polynomials, which agree with
// the CPU's, cost about 70 and 85 (tanh) to 115 (erf) instructions an element: at 128 a cycle and
// SM that is more time than the bytes take. One more reason why the products of an MLP apply GELU
// in their epilogue, where it is hidden.
#include "kernels/gelu/gelu.h"

#include "kernels/core/rows.cuh"
#include "kernels/gelu/gelu_form.h"

namespace orthofed::gpu {
namespace {

template <class T, class Form>
__global__ void forward_kernel(GeluForward<T> a) {
  constexpr int N = kFullPack<T>;
  for_each_pack<N>(a.rows, a.cols, [&](int64_t i, int64_t j) {
    Pack<T, N> v = load_part<N>(a.x + i * a.ldx + j, a.cols - j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) v[e] = T(float(v[e]) * Form::phi(float(v[e])));
    store_part(a.y + i * a.ldy + j, v, a.cols - j);
  });
}

template <class T, class Form>
__global__ void backward_kernel(GeluBackward<T> a) {
  constexpr int N = kFullPack<T>;
  for_each_pack<N>(a.rows, a.cols, [&](int64_t i, int64_t j) {
    Pack<T, N> d = load_part<N>(a.dy + i * a.lddy + j, a.cols - j);      // [N]
    const Pack<T, N> v = load_part<N>(a.x + i * a.ldx + j, a.cols - j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) d[e] = T(float(d[e]) * Form::derivative(float(v[e])));
    store_part(a.dx + i * a.lddx + j, d, a.cols - j);
  });
}

}  // namespace

template <class T, class Stream>
void gelu_forward(const GeluForward<T>& a, const Stream& stream) {
  with_gelu_form(a.kind, [&]<class Form>(Form) {
    launch(forward_kernel<T, Form>, map_shape<kFullPack<T>>(a.rows, a.cols), stream, a);
  });
}

template <class T, class Stream>
void gelu_backward(const GeluBackward<T>& a, const Stream& stream) {
  with_gelu_form(a.kind, [&]<class Form>(Form) {
    launch(backward_kernel<T, Form>, map_shape<kFullPack<T>>(a.rows, a.cols), stream, a);
  });
}

#define OF_INSTANTIATE(T)                                              \
  template void gelu_forward(const GeluForward<T>&, const OF_STREAM&); \
  template void gelu_backward(const GeluBackward<T>&, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
