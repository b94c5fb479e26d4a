// Layer normalisation on a GPU: a ladder of versions (forward and backward of each in one file),
// and the rung that production takes. All are bounded by their bytes, see layer_norm.h: what the
// ladder climbs is how often, and how well, a row is read. The affine gradients are sums over rows
// (core/column_sum.cuh), both in one pass over dy and x.
#include "kernels/layer_norm/layer_norm.h"

#include "kernels/core/column_sum.cuh"
#include "kernels/layer_norm/01_naive.cuh"
#include "kernels/layer_norm/02_warp.cuh"
#include "kernels/layer_norm/03_registers.cuh"

namespace orthofed::gpu {
namespace {

template <class Rung, class T, class Stream>
void run_forward(const float* x, int64_t ldx, const float* gamma, const float* beta, T* y,
                 int64_t ldy, float* mean, float* rstd, int64_t rows, int64_t cols, double eps,
                 const Stream& stream) {
  Rung::forward(
      LayerNormForward<T>{x, ldx, gamma, beta, y, ldy, mean, rstd, rows, cols, float(eps)}, stream);
}

template <class Rung, class T, class Stream>
void run_backward(const T* dy, int64_t lddy, const float* x, int64_t ldx, const float* gamma,
                  const float* mean, const float* rstd, const float* residual, int64_t ldr,
                  float* dx, int64_t lddx, int64_t rows, int64_t cols, const Stream& stream) {
  Rung::backward(LayerNormBackward<T>{dy, lddy, x, ldx, gamma, mean, rstd, residual, ldr, dx, lddx,
                                      rows, cols},
                 stream);
}

template <class T>
__global__ void affine_kernel(const T* dy, int64_t lddy, const float* x, int64_t ldx,
                              const float* mean, const float* rstd, float* partial, int64_t rows,
                              int64_t cols) {
  sum_chunk<2>(partial, rows, cols, [&](int64_t i, int64_t j, float(&sums)[2]) {
    const float d = float(dy[i * lddy + j]);
    sums[0] += d * ((x[i * ldx + j] - mean[i]) * rstd[i]);
    sums[1] += d;
  });
}

}  // namespace

template <class T, class Stream>
std::span<const Version<LayerNormForwardRun<T, Stream>>> layer_norm_forward_versions() {
  static const Version<LayerNormForwardRun<T, Stream>> versions[] = {
      {1, "naive", run_forward<Naive, T, Stream>},
      {2, "warp", run_forward<WarpPerRow, T, Stream>},
      {3, "registers", run_forward<Registers, T, Stream>},
  };
  return versions;
}

template <class T, class Stream>
std::span<const Version<LayerNormBackwardRun<T, Stream>>> layer_norm_backward_versions() {
  static const Version<LayerNormBackwardRun<T, Stream>> versions[] = {
      {1, "naive", run_backward<Naive, T, Stream>},
      {2, "warp", run_backward<WarpPerRow, T, Stream>},
      {3, "registers", run_backward<Registers, T, Stream>},
  };
  return versions;
}

template <class T, class Stream>
void layer_norm_forward(const Accum<T>* x, int64_t ldx, const Accum<T>* gamma, const Accum<T>* beta,
                        T* y, int64_t ldy, Accum<T>* mean, Accum<T>* rstd, int64_t rows,
                        int64_t cols, double eps, const Stream& stream) {
  run_forward<Registers>(x, ldx, gamma, beta, y, ldy, mean, rstd, rows, cols, eps, stream);
}

template <class T, class Stream>
void layer_norm_backward(const T* dy, int64_t lddy, const Accum<T>* x, int64_t ldx,
                         const Accum<T>* gamma, const Accum<T>* mean, const Accum<T>* rstd,
                         const Accum<T>* residual, int64_t ldr, Accum<T>* dx, int64_t lddx,
                         int64_t rows, int64_t cols, const Stream& stream) {
  run_backward<Registers>(dy, lddy, x, ldx, gamma, mean, rstd, residual, ldr, dx, lddx, rows, cols,
                          stream);
}

template <class T, class Stream>
void layer_norm_backward_affine(const T* dy, int64_t lddy, const Accum<T>* x, int64_t ldx,
                                const Accum<T>* mean, const Accum<T>* rstd, Accum<T>* dgamma,
                                Accum<T>* dbeta, bool accumulate, int64_t rows, int64_t cols,
                                const Stream& stream) {
  auto* partial = scratch_as<float>(stream, layer_norm_backward_affine_scratch(rows, cols));
  launch(affine_kernel<T>, sum_chunk_shape(rows, cols), stream, dy, lddy, x, ldx, mean, rstd,
         partial, rows, cols);
  sum_chunks<2>(partial, 0, dgamma, accumulate, rows, cols, stream);
  sum_chunks<2>(partial, 1, dbeta, accumulate, rows, cols, stream);
}

#define OF_INSTANTIATE(T)                                                                         \
  template std::span<const Version<LayerNormForwardRun<T, OF_STREAM>>>                            \
  layer_norm_forward_versions<T, OF_STREAM>();                                                    \
  template std::span<const Version<LayerNormBackwardRun<T, OF_STREAM>>>                           \
  layer_norm_backward_versions<T, OF_STREAM>();                                                   \
  template void layer_norm_forward<T>(const float*, int64_t, const float*, const float*, T*,      \
                                      int64_t, float*, float*, int64_t, int64_t, double,          \
                                      const OF_STREAM&);                                          \
  template void layer_norm_backward<T>(const T*, int64_t, const float*, int64_t, const float*,    \
                                       const float*, const float*, const float*, int64_t, float*, \
                                       int64_t, int64_t, int64_t, const OF_STREAM&);              \
  template void layer_norm_backward_affine<T>(const T*, int64_t, const float*, int64_t,           \
                                              const float*, const float*, float*, float*, bool,   \
                                              int64_t, int64_t, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
