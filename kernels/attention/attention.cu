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

template <class Rung, class Arguments, class Stream>
void run(const Arguments& a, const Stream& stream) {
  check(a.shape);
  Rung::run(a, stream);
}

// The best rung for the element type.
template <class T>
using Best = std::conditional_t<std::is_same_v<T, bf16>, Mma, Tiles>;

}  // namespace

template <class T, class Stream>
Ladder<AttentionForward<T>, Stream> attention_forward_versions() {
  using Arguments = AttentionForward<T>;
  static constexpr Version<Arguments, Stream> versions[] = {
      {1, "naive", run<Naive, Arguments, Stream>},
      {2, "tiles", run<Tiles, Arguments, Stream>},
      {3, "mma", run<Best<T>, Arguments, Stream>},
  };
  return std::span(versions).first(std::is_same_v<T, bf16> ? 3 : 2);
}

template <class T, class Stream>
Ladder<AttentionBackward<T>, Stream> attention_backward_versions() {
  using Arguments = AttentionBackward<T>;
  static constexpr Version<Arguments, Stream> versions[] = {
      {1, "naive", run<Naive, Arguments, Stream>},
      {2, "tiles", run<Tiles, Arguments, Stream>},
      {3, "mma", run<Best<T>, Arguments, Stream>},
  };
  return std::span(versions).first(std::is_same_v<T, bf16> ? 3 : 2);
}

// The naive rung where head_dim is too large for tiles.
template <class T, class Stream>
void attention_forward(const AttentionForward<T>& a, const Stream& stream) {
#ifdef OF_HAVE_CUDNN
  if constexpr (std::is_same_v<Stream, cuda::Stream> && std::is_same_v<T, bf16>)
    if (cuda::cudnn_asked() && cuda::attention_forward_cudnn(a, stream)) return;
#endif
  a.shape.head_dim <= kMaxTiledHeadDim ? run<Best<T>>(a, stream) : run<Naive>(a, stream);
}

template <class T, class Stream>
void attention_backward(const AttentionBackward<T>& a, const Stream& stream) {
#ifdef OF_HAVE_CUDNN
  if constexpr (std::is_same_v<Stream, cuda::Stream> && std::is_same_v<T, bf16>)
    if (cuda::cudnn_asked() && cuda::attention_backward_cudnn(a, stream)) return;
#endif
  a.shape.head_dim <= kMaxTiledHeadDim ? run<Best<T>>(a, stream) : run<Naive>(a, stream);
}

#define OF_INSTANTIATE(T)                                                                     \
  template void attention_forward(const AttentionForward<T>&, const OF_STREAM&);              \
  template void attention_backward(const AttentionBackward<T>&, const OF_STREAM&);            \
  template Ladder<AttentionForward<T>, OF_STREAM> attention_forward_versions<T, OF_STREAM>(); \
  template Ladder<AttentionBackward<T>, OF_STREAM> attention_backward_versions<T, OF_STREAM>();
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
