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
__global__ void forward_kernel(const float* x, int64_t ldx, const T* z, int64_t ldz,
                               const float* gamma, float* y, int64_t ldy, int64_t rows,
                               int64_t cols) {
  for_each_pack<N>(rows, cols, [&](int64_t i, int64_t j) {
    Pack<float, N> sum = load_part<N>(x + i * ldx + j, cols - j);       // [N]
    const Pack<T, N> branch = load_part<N>(z + i * ldz + j, cols - j);  // [N]
    if (gamma == nullptr) {
#pragma unroll
      for (int e = 0; e < N; ++e) sum[e] += float(branch[e]);
    } else {
      const Pack<float, N> scale = load_part<N>(gamma + j, cols - j);  // [N]
#pragma unroll
      for (int e = 0; e < N; ++e) sum[e] += scale[e] * float(branch[e]);
    }
    store_part(y + i * ldy + j, sum, cols - j);
  });
}

template <class T>
__global__ void backward_kernel(const float* dy, int64_t lddy, const float* gamma, T* dz,
                                int64_t lddz, int64_t rows, int64_t cols) {
  for_each_pack<N>(rows, cols, [&](int64_t i, int64_t j) {
    const Pack<float, N> d = load_part<N>(dy + i * lddy + j, cols - j);  // [N]
    const Pack<float, N> scale =
        gamma == nullptr ? Pack<float, N>{} : load_part<N>(gamma + j, cols - j);  // [N]
    Pack<T, N> out;                                                               // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) out[e] = T(gamma == nullptr ? d[e] : scale[e] * d[e]);
    store_part(dz + i * lddz + j, out, cols - j);
  });
}

template <class T>
__global__ void backward_gamma_kernel(const float* dy, int64_t lddy, const T* z, int64_t ldz,
                                      float* partial, int64_t rows, int64_t cols) {
  sum_chunk<1>(partial, rows, cols, [&](int64_t i, int64_t j, float(&sums)[1]) {
    sums[0] += dy[i * lddy + j] * float(z[i * ldz + j]);
  });
}

template <class T>
__global__ void bias_kernel(const T* dy, int64_t lddy, float* partial, int64_t rows, int64_t cols) {
  sum_chunk<1>(partial, rows, cols,
               [&](int64_t i, int64_t j, float(&sums)[1]) { sums[0] += float(dy[i * lddy + j]); });
}

}  // namespace

template <class T, class Stream>
void residual_forward(const Accum<T>* x, int64_t ldx, const T* z, int64_t ldz,
                      const Accum<T>* gamma, Accum<T>* y, int64_t ldy, int64_t rows, int64_t cols,
                      const Stream& stream) {
  launch(forward_kernel<T>, map_shape<N>(rows, cols), stream, x, ldx, z, ldz, gamma, y, ldy, rows,
         cols);
}

template <class T, class Stream>
void residual_backward(const Accum<T>* dy, int64_t lddy, const Accum<T>* gamma, T* dz, int64_t lddz,
                       int64_t rows, int64_t cols, const Stream& stream) {
  launch(backward_kernel<T>, map_shape<N>(rows, cols), stream, dy, lddy, gamma, dz, lddz, rows,
         cols);
}

template <class T, class Stream>
void residual_backward_gamma(const Accum<T>* dy, int64_t lddy, const T* z, int64_t ldz,
                             Accum<T>* dgamma, bool accumulate, int64_t rows, int64_t cols,
                             const Stream& stream) {
  auto* partial = scratch_as<float>(stream, residual_backward_gamma_scratch(rows, cols));
  launch(backward_gamma_kernel<T>, sum_chunk_shape(rows, cols), stream, dy, lddy, z, ldz, partial,
         rows, cols);
  sum_chunks<1>(partial, 0, dgamma, accumulate, rows, cols, stream);
}

template <class T, class Stream>
void bias_backward(const T* dy, int64_t lddy, Accum<T>* db, bool accumulate, int64_t rows,
                   int64_t cols, const Stream& stream) {
  auto* partial = scratch_as<float>(stream, bias_backward_scratch(rows, cols));
  launch(bias_kernel<T>, sum_chunk_shape(rows, cols), stream, dy, lddy, partial, rows, cols);
  sum_chunks<1>(partial, 0, db, accumulate, rows, cols, stream);
}

#define OF_INSTANTIATE(T)                                                                          \
  template void residual_forward<T>(const float*, int64_t, const T*, int64_t, const float*,        \
                                    float*, int64_t, int64_t, int64_t, const OF_STREAM&);          \
  template void residual_backward<T>(const float*, int64_t, const float*, T*, int64_t, int64_t,    \
                                     int64_t, const OF_STREAM&);                                   \
  template void residual_backward_gamma<T>(const float*, int64_t, const T*, int64_t, float*, bool, \
                                           int64_t, int64_t, const OF_STREAM&);                    \
  template void bias_backward<T>(const T*, int64_t, float*, bool, int64_t, int64_t,                \
                                 const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
