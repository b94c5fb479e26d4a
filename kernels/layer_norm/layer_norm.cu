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

template <class T>
__global__ void affine_kernel(LayerNormBackwardAffine<T> a, float* partial) {
  sum_chunk<2>(partial, a.rows, a.cols, [&](int64_t i, int64_t j, float(&sums)[2]) {
    const float d = float(a.dy[i * a.lddy + j]);
    sums[0] += d * ((a.x[i * a.ldx + j] - a.mean[i]) * a.rstd[i]);
    sums[1] += d;
  });
}

}  // namespace

template <class T, class Stream>
Ladder<LayerNormForward<T>, Stream> layer_norm_forward_versions() {
  static constexpr Version<LayerNormForward<T>, Stream> versions[] = {
      {1, "naive", Naive::forward},
      {2, "warp", WarpPerRow::forward},
      {3, "registers", Registers::forward},
  };
  return versions;
}

template <class T, class Stream>
Ladder<LayerNormBackward<T>, Stream> layer_norm_backward_versions() {
  static constexpr Version<LayerNormBackward<T>, Stream> versions[] = {
      {1, "naive", Naive::backward},
      {2, "warp", WarpPerRow::backward},
      {3, "registers", Registers::backward},
  };
  return versions;
}

template <class T, class Stream>
void layer_norm_forward(const LayerNormForward<T>& a, const Stream& stream) {
  Registers::forward(a, stream);
}

template <class T, class Stream>
void layer_norm_backward(const LayerNormBackward<T>& a, const Stream& stream) {
  Registers::backward(a, stream);
}

template <class T, class Stream>
void layer_norm_backward_affine(const LayerNormBackwardAffine<T>& a, const Stream& stream) {
  auto* partial = scratch_as<float>(stream, layer_norm_backward_affine_scratch(a.rows, a.cols));
  launch(affine_kernel<T>, sum_chunk_shape(a.rows, a.cols), stream, a, partial);
  sum_chunks<2>(partial, 0, a.dgamma, a.accumulate, a.rows, a.cols, stream);
  sum_chunks<2>(partial, 1, a.dbeta, a.accumulate, a.rows, a.cols, stream);
}

#define OF_INSTANTIATE(T)                                                                        \
  template Ladder<LayerNormForward<T>, OF_STREAM> layer_norm_forward_versions<T, OF_STREAM>();   \
  template Ladder<LayerNormBackward<T>, OF_STREAM> layer_norm_backward_versions<T, OF_STREAM>(); \
  template void layer_norm_forward(const LayerNormForward<T>&, const OF_STREAM&);                \
  template void layer_norm_backward(const LayerNormBackward<T>&, const OF_STREAM&);              \
  template void layer_norm_backward_affine(const LayerNormBackwardAffine<T>&, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
