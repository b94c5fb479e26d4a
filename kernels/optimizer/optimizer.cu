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

template <class Rule, class Step>
__global__ void step_kernel(const OptimizedTensor<float>* tensors, int64_t count, Step step) {
  __shared__ Rule shared;
  if (!std::isfinite(*step.gradient_scale)) return;
  const Chunk chunk = find_chunk(tensors, count, blockIdx.x);
  const OptimizedTensor<float> t = tensors[chunk.item];
  if (threadIdx.x == 0) shared = Rule::of(step, t.weight_decay);
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
    if (step.zero_gradients) store_part(t.gradient + i, Floats{}, left);
  }
}

template <class Rule, class Step, class Stream>
void run(const OptimizedTensor<float>* tensors, int64_t count, int64_t chunks, const Step& step,
         const Stream& stream) {
  launch(step_kernel<Rule, Step>, {.grid_x = unsigned(chunks), .threads_x = kThreads}, stream,
         tensors, count, step);
}

}  // namespace

template <class T, class Stream>
void adamw(const OptimizedTensor<T>* tensors, int64_t count, int64_t chunks, const AdamWStep& step,
           const Stream& stream) {
  run<AdamWRule<T>>(tensors, count, chunks, step, stream);
}

template <class T, class Stream>
void sgd(const OptimizedTensor<T>* tensors, int64_t count, int64_t chunks, const SgdStep& step,
         const Stream& stream) {
  run<SgdRule<T>>(tensors, count, chunks, step, stream);
}

template void adamw<float>(const OptimizedTensor<float>*, int64_t, int64_t, const AdamWStep&,
                           const OF_STREAM&);
template void sgd<float>(const OptimizedTensor<float>*, int64_t, int64_t, const SgdStep&,
                         const OF_STREAM&);

}  // namespace orthofed::gpu
