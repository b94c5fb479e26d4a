#include <algorithm>
#include <cmath>

#include "kernels/core/parallel.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/optimizer/optimizer_rule.h"

namespace orthofed::cpu {
namespace {

template <class Rule, class T, class Step>
void run(const OptimizedTensor<T>* tensors, int64_t count, int64_t chunks, const Step& step) {
  if (!std::isfinite(*step.gradient_scale)) return;
  parallel_for(chunks, 1, [=](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      const Chunk chunk = find_chunk(tensors, count, c);
      const OptimizedTensor<T> tensor = tensors[chunk.item];
      const Rule rule = Rule::of(step, tensor.weight_decay);
      T *p = tensor.parameter, *g = tensor.gradient, *m = tensor.m, *v = tensor.v;
#pragma GCC ivdep
      for (int64_t i = chunk.begin; i < chunk.end; ++i) {
        if constexpr (Rule::kSecondMoment)
          rule(p[i], g[i], m[i], v[i]);
        else
          rule(p[i], g[i], m[i]);
      }
      if (step.zero_gradients) std::fill(g + chunk.begin, g + chunk.end, T(0));
    }
  });
}

}  // namespace

template <class T>
void adamw(const OptimizedTensor<T>* tensors, int64_t count, int64_t chunks,
           const AdamWStep& step) {
  run<AdamWRule<T>>(tensors, count, chunks, step);
}

template <class T>
void sgd(const OptimizedTensor<T>* tensors, int64_t count, int64_t chunks, const SgdStep& step) {
  run<SgdRule<T>>(tensors, count, chunks, step);
}

#define OF_INSTANTIATE(T)                                                                \
  template void adamw<T>(const OptimizedTensor<T>*, int64_t, int64_t, const AdamWStep&); \
  template void sgd<T>(const OptimizedTensor<T>*, int64_t, int64_t, const SgdStep&);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
