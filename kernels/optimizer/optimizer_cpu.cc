#include <algorithm>
#include <cmath>

#include "kernels/core/parallel.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/optimizer/optimizer_rule.h"

namespace orthofed::cpu {
namespace {

// Args: AdamW<T> or Sgd<T>.
template <template <class> class Rule, template <class> class Args, class T>
void run(const Args<T>& a) {
  if (!std::isfinite(*a.step.gradient_scale)) return;
  parallel_for(a.chunks, 1, [=](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      const Chunk chunk = find_chunk(a.tensors, a.count, c);
      const OptimizedTensor<T> tensor = a.tensors[chunk.item];
      const Rule<T> rule = Rule<T>::of(a.step, tensor.weight_decay);
      T *p = tensor.parameter, *g = tensor.gradient, *m = tensor.m, *v = tensor.v;
#pragma GCC ivdep
      for (int64_t i = chunk.begin; i < chunk.end; ++i) {
        if constexpr (Rule<T>::kSecondMoment)
          rule(p[i], g[i], m[i], v[i]);
        else
          rule(p[i], g[i], m[i]);
      }
      if (a.step.zero_gradients) std::fill(g + chunk.begin, g + chunk.end, T(0));
    }
  });
}

}  // namespace

template <class T>
void adamw(const AdamW<T>& a) {
  run<AdamWRule>(a);
}

template <class T>
void sgd(const Sgd<T>& a) {
  run<SgdRule>(a);
}

#define OF_INSTANTIATE(T)               \
  template void adamw(const AdamW<T>&); \
  template void sgd(const Sgd<T>&);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
