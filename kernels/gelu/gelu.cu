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
__global__ void forward_kernel(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows,
                               int64_t cols) {
  constexpr int N = kFullPack<T>;
  for_each_pack<N>(rows, cols, [&](int64_t i, int64_t j) {
    Pack<T, N> v = load_part<N>(x + i * ldx + j, cols - j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) v[e] = T(float(v[e]) * Form::phi(float(v[e])));
    store_part(y + i * ldy + j, v, cols - j);
  });
}

template <class T, class Form>
__global__ void backward_kernel(const T* dy, int64_t lddy, const T* x, int64_t ldx, T* dx,
                                int64_t lddx, int64_t rows, int64_t cols) {
  constexpr int N = kFullPack<T>;
  for_each_pack<N>(rows, cols, [&](int64_t i, int64_t j) {
    Pack<T, N> d = load_part<N>(dy + i * lddy + j, cols - j);      // [N]
    const Pack<T, N> v = load_part<N>(x + i * ldx + j, cols - j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) d[e] = T(float(d[e]) * Form::derivative(float(v[e])));
    store_part(dx + i * lddx + j, d, cols - j);
  });
}

}  // namespace

template <class T, class Stream>
void gelu_forward(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols,
                  GeluKind kind, const Stream& stream) {
  with_gelu_form(kind, [&]<class Form>(Form) {
    launch(forward_kernel<T, Form>, map_shape<kFullPack<T>>(rows, cols), stream, x, ldx, y, ldy,
           rows, cols);
  });
}

template <class T, class Stream>
void gelu_backward(const T* dy, int64_t lddy, const T* x, int64_t ldx, T* dx, int64_t lddx,
                   int64_t rows, int64_t cols, GeluKind kind, const Stream& stream) {
  with_gelu_form(kind, [&]<class Form>(Form) {
    launch(backward_kernel<T, Form>, map_shape<kFullPack<T>>(rows, cols), stream, dy, lddy, x, ldx,
           dx, lddx, rows, cols);
  });
}

#define OF_INSTANTIATE(T)                                                                    \
  template void gelu_forward<T>(const T*, int64_t, T*, int64_t, int64_t, int64_t, GeluKind,  \
                                const OF_STREAM&);                                           \
  template void gelu_backward<T>(const T*, int64_t, const T*, int64_t, T*, int64_t, int64_t, \
                                 int64_t, GeluKind, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
