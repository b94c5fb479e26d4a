#include "kernels/optimizer/optimizer.h"

#include <cmath>

#include "kernels/core/parallel.h"

namespace orthofed::cpu {
namespace {
constexpr int64_t kChunk = 16384;  // elements: most adapters are one chunk and start no threads
}

template <class T>
void adamw(const OptimizedTensor<T>* tensors, int64_t count, const AdamWStep& step) {
  const double correction1 = 1 - std::pow(step.beta1, double(step.step));
  const double correction2 = 1 - std::pow(step.beta2, double(step.step));
  const T scale = T(step.gradient_scale);
  const T b1 = T(step.beta1), c1 = T(1 - step.beta1);
  const T b2 = T(step.beta2), c2 = T(1 - step.beta2);
  const T rate = T(step.learning_rate / correction1);
  const T inverse_root = T(1 / std::sqrt(correction2)), eps = T(step.eps);
  for (int64_t k = 0; k < count; ++k) {
    const OptimizedTensor<T> tensor = tensors[k];
    const T decay = T(step.learning_rate * tensor.weight_decay);
    parallel_for(tensor.size, kChunk, [=](int64_t begin, int64_t end) {
      T *p = tensor.parameter, *m = tensor.m, *v = tensor.v;
#pragma GCC ivdep
      for (int64_t i = begin; i < end; ++i) {
        const T g = tensor.gradient[i] * scale;
        m[i] = b1 * m[i] + c1 * g;
        v[i] = b2 * v[i] + c2 * g * g;
        // p - decay * p, not (1 - decay) * p: at lr * wd = 1e-5 rounding 1 - decay to float would
        // change the decay itself by up to 0.3 %.
        const T decayed = p[i] - decay * p[i];
        p[i] = decayed - rate * m[i] / (std::sqrt(v[i]) * inverse_root + eps);
      }
    });
  }
}

template <class T>
void sgd(const OptimizedTensor<T>* tensors, int64_t count, const SgdStep& step) {
  const T rate = T(step.learning_rate), momentum = T(step.momentum);
  const T scale = T(step.gradient_scale);
  for (int64_t k = 0; k < count; ++k) {
    const OptimizedTensor<T> tensor = tensors[k];
    const T decay = T(tensor.weight_decay);
    parallel_for(tensor.size, kChunk, [=](int64_t begin, int64_t end) {
      T *p = tensor.parameter, *m = tensor.m;
#pragma GCC ivdep
      for (int64_t i = begin; i < end; ++i) {
        const T g = tensor.gradient[i] * scale + decay * p[i];
        m[i] = momentum * m[i] + g;
        p[i] -= rate * m[i];
      }
    });
  }
}

template void adamw<double>(const OptimizedTensor<double>*, int64_t, const AdamWStep&);
template void adamw<float>(const OptimizedTensor<float>*, int64_t, const AdamWStep&);
template void sgd<double>(const OptimizedTensor<double>*, int64_t, const SgdStep&);
template void sgd<float>(const OptimizedTensor<float>*, int64_t, const SgdStep&);

}  // namespace orthofed::cpu
