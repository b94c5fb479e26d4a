// The optimiser's step on a GPU: one launch for all tensors, a block for each chunk of 4096
// elements. Adapters are hundreds of small tensors; a launch for each would cost more than their
// bytes (28 an element with AdamW), which bound this one. The numbers that depend on the step are
// worked out in double by one thread a block, from the step number in device memory.
#include "kernels/optimizer/optimizer.h"

#include "kernels/core/rows.cuh"
#include "kernels/optimizer/optimizer_rule.h"

namespace orthofed::gpu {
namespace {

constexpr int kThreads = 256, kPack = 4;
using Floats = Pack<float, kPack>;

// Args: AdamW<float> or Sgd<float>.
template <class Rule, class Args>
__global__ void step_kernel(Args a) {
  __shared__ Rule shared;
  if (!std::isfinite(*a.step.gradient_scale)) return;
  const Chunk chunk = find_chunk(a.tensors, a.count, blockIdx.x);
  const OptimizedTensor<float> t = a.tensors[chunk.item];
  if (threadIdx.x == 0) shared = Rule::of(a.step, t.weight_decay);
  __syncthreads();
  const Rule rule = shared;
  for (int64_t i = chunk.begin + kPack * int(threadIdx.x); i < chunk.end; i += kPack * kThreads) {
    const int64_t left = chunk.end - i;
    Floats p = load_part<kPack>(t.parameter + i, left), m = load_part<kPack>(t.m + i, left);
    const Floats g = load_part<kPack>(t.gradient + i, left);
    if constexpr (Rule::kSecondMoment) {
      Floats v = load_part<kPack>(t.v + i, left);
#pragma unroll
      for (int e = 0; e < kPack; ++e) rule(p[e], g[e], m[e], v[e]);
      store_part(t.v + i, v, left);
    } else {
#pragma unroll
      for (int e = 0; e < kPack; ++e) rule(p[e], g[e], m[e]);
    }
    store_part(t.parameter + i, p, left);
    store_part(t.m + i, m, left);
    if (a.step.zero_gradients) store_part(t.gradient + i, Floats{}, left);
  }
}

template <class Rule, class Args, class Stream>
void run(const Args& a, const Stream& stream) {
  launch(step_kernel<Rule, Args>, {.grid_x = unsigned(a.chunks), .threads_x = kThreads}, stream, a);
}

}  // namespace

template <class T, class Stream>
void adamw(const AdamW<T>& a, const Stream& stream) {
  run<AdamWRule<T>>(a, stream);
}

template <class T, class Stream>
void sgd(const Sgd<T>& a, const Stream& stream) {
  run<SgdRule<T>>(a, stream);
}

template void adamw(const AdamW<float>&, const OF_STREAM&);
template void sgd(const Sgd<float>&, const OF_STREAM&);

}  // namespace orthofed::gpu
