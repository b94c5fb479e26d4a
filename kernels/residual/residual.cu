// The end of a block's half on a GPU. Forward and backward take every element by itself
// (core/rows.cuh), the sums over rows are made in two launches (core/column_sum.cuh). All four are
// bounded by their bytes: see residual.h.
#include "kernels/residual/residual.h"

#include "kernels/core/column_sum.cuh"
#include "kernels/core/rows.cuh"

namespace orthofed::gpu {
namespace {

constexpr int N = 4;  // elements of a pack: 16 bytes of the residual stream

template <class T>
__global__ void forward_kernel(ResidualForward<T> a) {
  for_each_pack<N>(a.rows, a.cols, [&](int64_t i, int64_t j) {
    Pack<float, N> sum = load_part<N>(a.x + i * a.ldx + j, a.cols - j);       // [N]
    const Pack<T, N> branch = load_part<N>(a.z + i * a.ldz + j, a.cols - j);  // [N]
    if (a.gamma == nullptr) {
#pragma unroll
      for (int e = 0; e < N; ++e) sum[e] += float(branch[e]);
    } else {
      const Pack<float, N> scale = load_part<N>(a.gamma + j, a.cols - j);  // [N]
#pragma unroll
      for (int e = 0; e < N; ++e) sum[e] += scale[e] * float(branch[e]);
    }
    store_part(a.y + i * a.ldy + j, sum, a.cols - j);
  });
}

template <class T>
__global__ void backward_kernel(ResidualBackward<T> a) {
  for_each_pack<N>(a.rows, a.cols, [&](int64_t i, int64_t j) {
    const Pack<float, N> d = load_part<N>(a.dy + i * a.lddy + j, a.cols - j);  // [N]
    const Pack<float, N> scale =
        a.gamma == nullptr ? Pack<float, N>{} : load_part<N>(a.gamma + j, a.cols - j);  // [N]
    Pack<T, N> out;                                                                     // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) out[e] = T(a.gamma == nullptr ? d[e] : scale[e] * d[e]);
    store_part(a.dz + i * a.lddz + j, out, a.cols - j);
  });
}

template <class T>
__global__ void backward_gamma_kernel(ResidualBackwardGamma<T> a, float* partial) {
  sum_chunk<1>(partial, a.rows, a.cols, [&](int64_t i, int64_t j, float(&sums)[1]) {
    sums[0] += a.dy[i * a.lddy + j] * float(a.z[i * a.ldz + j]);
  });
}

template <class T>
__global__ void bias_kernel(BiasBackward<T> a, float* partial) {
  sum_chunk<1>(partial, a.rows, a.cols, [&](int64_t i, int64_t j, float(&sums)[1]) {
    sums[0] += float(a.dy[i * a.lddy + j]);
  });
}

}  // namespace

template <class T, class Stream>
void residual_forward(const ResidualForward<T>& a, const Stream& stream) {
  launch(forward_kernel<T>, map_shape<N>(a.rows, a.cols), stream, a);
}

template <class T, class Stream>
void residual_backward(const ResidualBackward<T>& a, const Stream& stream) {
  launch(backward_kernel<T>, map_shape<N>(a.rows, a.cols), stream, a);
}

template <class T, class Stream>
void residual_backward_gamma(const ResidualBackwardGamma<T>& a, const Stream& stream) {
  auto* partial = scratch_as<float>(stream, residual_backward_gamma_scratch(a.rows, a.cols));
  launch(backward_gamma_kernel<T>, sum_chunk_shape(a.rows, a.cols), stream, a, partial);
  sum_chunks<1>(partial, 0, a.dgamma, a.accumulate, a.rows, a.cols, stream);
}

template <class T, class Stream>
void bias_backward(const BiasBackward<T>& a, const Stream& stream) {
  auto* partial = scratch_as<float>(stream, bias_backward_scratch(a.rows, a.cols));
  launch(bias_kernel<T>, sum_chunk_shape(a.rows, a.cols), stream, a, partial);
  sum_chunks<1>(partial, 0, a.db, a.accumulate, a.rows, a.cols, stream);
}

#define OF_INSTANTIATE(T)                                                                   \
  template void residual_forward(const ResidualForward<T>&, const OF_STREAM&);              \
  template void residual_backward(const ResidualBackward<T>&, const OF_STREAM&);            \
  template void residual_backward_gamma(const ResidualBackwardGamma<T>&, const OF_STREAM&); \
  template void bias_backward(const BiasBackward<T>&, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
