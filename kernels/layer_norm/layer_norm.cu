// Layer normalisation on a GPU. One warp owns a row and holds it in registers, so that x is read
// from memory once; a row too long for that is read again from cache.
#include "kernels/layer_norm/layer_norm.h"

#include "kernels/core/warp.cuh"

namespace orthofed::gpu {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;

template <class T>
__global__ void forward_kernel(const float* x, int64_t ldx, const float* gamma, const float* beta,
                               T* y, int64_t ldy, float* mean, float* rstd, int64_t rows,
                               int64_t cols, float eps) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (i >= rows) return;
  const float* xi = x + i * ldx;  // [cols]
  T* yi = y + i * ldy;            // [cols]
  float sum = 0;
  for (int64_t j = lane; j < cols; j += 32) sum += xi[j];
  const float m = warp_sum(sum) / float(cols);
  float squares = 0;
  for (int64_t j = lane; j < cols; j += 32) squares += (xi[j] - m) * (xi[j] - m);
  const float r = 1.0f / sqrtf(warp_sum(squares) / float(cols) + eps);
  for (int64_t j = lane; j < cols; j += 32) yi[j] = T((xi[j] - m) * r * gamma[j] + beta[j]);
  if (lane == 0) {
    mean[i] = m;
    rstd[i] = r;
  }
}

}  // namespace

template <class T, class Stream>
void layer_norm_forward(const Accum<T>* x, int64_t ldx, const Accum<T>* gamma, const Accum<T>* beta,
                        T* y, int64_t ldy, Accum<T>* mean, Accum<T>* rstd, int64_t rows,
                        int64_t cols, double eps, const Stream& stream) {
  launch(forward_kernel<T>, {.grid_x = unsigned(ceil_div(rows, kWarps)), .threads_x = kThreads},
         stream, x, ldx, gamma, beta, y, ldy, mean, rstd, rows, cols, eps);
}

#define OF_INSTANTIATE(T)                                                                    \
  template void layer_norm_forward<T>(const float*, int64_t, const float*, const float*, T*, \
                                      int64_t, float*, float*, int64_t, int64_t, double,     \
                                      const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
