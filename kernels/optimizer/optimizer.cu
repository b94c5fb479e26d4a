// The optimiser's step on a GPU: one launch for all tensors, a block for each chunk of 4096
// elements. Adapters are hundreds of small tensors; a launch for each would cost more than their
// bytes (28 an element with AdamW), which bound this one. The numbers that depend on the step are
// worked out in double by one thread a block, from the step number in device memory.
#include "kernels/optimizer/optimizer.h"

#include "kernels/core/warp.cuh"
#include "kernels/optimizer/optimizer_rule.h"

namespace orthofed::gpu {
namespace {

constexpr int kThreads = 256, kPack = 4;

template <class Rule, int N>
__device__ void update(const Rule& rule, const OptimizedTensor<float>& t, int64_t i,
                       bool zero_gradient) {
  Pack<float, N> p = load_pack<N>(t.parameter + i), m = load_pack<N>(t.m + i);  // [N]
  const Pack<float, N> g = load_pack<N>(t.gradient + i);                        // [N]
  if constexpr (Rule::kSecondMoment) {
    Pack<float, N> v = load_pack<N>(t.v + i);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) rule(p[e], g[e], m[e], v[e]);
    store_pack(t.v + i, v);
  } else {
#pragma unroll
    for (int e = 0; e < N; ++e) rule(p[e], g[e], m[e]);
  }
  store_pack(t.parameter + i, p);
  store_pack(t.m + i, m);
  if (zero_gradient) store_pack(t.gradient + i, Pack<float, N>{});
}

template <class Rule, class Step>
__global__ void step_kernel(const OptimizedTensor<float>* tensors, int64_t count, Step step) {
  __shared__ Rule shared;
  if (!std::isfinite(*step.gradient_scale)) return;
  const Chunk chunk = find_chunk(tensors, count, blockIdx.x);
  const OptimizedTensor<float> t = tensors[chunk.item];
  if (threadIdx.x == 0) shared = Rule::of(step, t.weight_decay);
  __syncthreads();
  const Rule rule = shared;
  // The chunk begins at a multiple of kPack.
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(t.parameter) |
                              reinterpret_cast<uintptr_t>(t.gradient) |
                              reinterpret_cast<uintptr_t>(t.m) |
                              (Rule::kSecondMoment ? reinterpret_cast<uintptr_t>(t.v) : 0);
  const int64_t packed = addresses % sizeof(Pack<float, kPack>) == 0
                             ? chunk.begin + (chunk.end - chunk.begin) / kPack * kPack
                             : chunk.begin;
  for (int64_t i = chunk.begin + kPack * int(threadIdx.x); i < packed; i += kPack * kThreads)
    update<Rule, kPack>(rule, t, i, step.zero_gradients);
  for (int64_t i = packed + threadIdx.x; i < chunk.end; i += kThreads)
    update<Rule, 1>(rule, t, i, step.zero_gradients);
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
