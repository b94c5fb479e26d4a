// Attention on a GPU: a ladder of versions, and the choice of the rung that production takes.
#include "kernels/attention/attention.h"

#include "kernels/attention/01_naive.cuh"
#include "kernels/attention/02_tiles.cuh"
#include "kernels/attention/03_mma.cuh"
#ifdef OF_HAVE_CUDNN
#include "kernels/attention/attention_cudnn.h"
#endif

namespace orthofed::gpu {
namespace {

template <class Rung, class T, class Stream>
void run_forward(const T* qkv, T* out, Accum<T>* lse, const AttentionShape& shape, double scale,
                 const Stream& stream) {
  check(shape);
  Rung::run(ForwardArguments<T>{qkv, out, lse, shape, float(scale)}, stream);
}

template <class Rung, class T, class Stream>
void run_backward(const T* qkv, const T* out, const T* dout, const Accum<T>* lse, T* dqkv,
                  const AttentionShape& shape, double scale, const Stream& stream) {
  check(shape);
  Rung::run(BackwardArguments<T>{qkv, out, dout, lse, dqkv, shape, float(scale)}, stream);
}

// The best rung for the element type.
template <class T>
using Best = std::conditional_t<std::is_same_v<T, bf16>, Mma, Tiles>;

}  // namespace

template <class T, class Stream>
std::span<const Version<AttentionForward<T, Stream>>> attention_forward_versions() {
  static constexpr Version<AttentionForward<T, Stream>> versions[] = {
      {1, "naive", run_forward<Naive, T, Stream>},
      {2, "tiles", run_forward<Tiles, T, Stream>},
      {3, "mma", run_forward<Best<T>, T, Stream>},
  };
  return std::span(versions).first(std::is_same_v<T, bf16> ? 3 : 2);
}

template <class T, class Stream>
std::span<const Version<AttentionBackward<T, Stream>>> attention_backward_versions() {
  static constexpr Version<AttentionBackward<T, Stream>> versions[] = {
      {1, "naive", run_backward<Naive, T, Stream>},
      {2, "tiles", run_backward<Tiles, T, Stream>},
      {3, "mma", run_backward<Best<T>, T, Stream>},
  };
  return std::span(versions).first(std::is_same_v<T, bf16> ? 3 : 2);
}

// The naive rung where head_dim is too large for tiles.
template <class T, class Stream>
void attention_forward(const T* qkv, T* out, Accum<T>* lse, const AttentionShape& shape,
                       double scale, const Stream& stream) {
#ifdef OF_HAVE_CUDNN
  if constexpr (std::is_same_v<Stream, cuda::Stream> && std::is_same_v<T, bf16>) {
    if (cuda::cudnn_asked() && cuda::attention_forward_cudnn(qkv, out, lse, shape, scale, stream))
      return;
  }
#endif
  const auto run = shape.head_dim <= kMaxTiledHeadDim ? run_forward<Best<T>, T, Stream>
                                                      : run_forward<Naive, T, Stream>;
  run(qkv, out, lse, shape, scale, stream);
}

template <class T, class Stream>
void attention_backward(const T* qkv, const T* out, const T* dout, const Accum<T>* lse, T* dqkv,
                        const AttentionShape& shape, double scale, const Stream& stream) {
#ifdef OF_HAVE_CUDNN
  if constexpr (std::is_same_v<Stream, cuda::Stream> && std::is_same_v<T, bf16>) {
    if (cuda::cudnn_asked() &&
        cuda::attention_backward_cudnn(qkv, out, dout, lse, dqkv, shape, scale, stream))
      return;
  }
#endif
  const auto run = shape.head_dim <= kMaxTiledHeadDim ? run_backward<Best<T>, T, Stream>
                                                      : run_backward<Naive, T, Stream>;
  run(qkv, out, dout, lse, dqkv, shape, scale, stream);
}

#define OF_INSTANTIATE(T)                                                                 \
  template void attention_forward<T>(const T*, T*, float*, const AttentionShape&, double, \
                                     const OF_STREAM&);                                   \
  template void attention_backward<T>(const T*, const T*, const T*, const float*, T*,     \
                                      const AttentionShape&, double, const OF_STREAM&);   \
  template std::span<const Version<AttentionForward<T, OF_STREAM>>>                       \
  attention_forward_versions<T, OF_STREAM>();                                             \
  template std::span<const Version<AttentionBackward<T, OF_STREAM>>>                      \
  attention_backward_versions<T, OF_STREAM>();
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
