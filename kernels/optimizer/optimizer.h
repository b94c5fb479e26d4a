// AdamW (Loshchilov, Hutter, arXiv 1711.05101, as torch.optim.AdamW computes it) and SGD with
// momentum, over many tensors in one call.
//
//   AdamW:  p -= lr * wd * p;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//           p -= lr * (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps)
//   SGD:    g += wd * p;  m = mu m + g;  p -= lr m
//
// g is the stored gradient times `gradient_scale` (the clip factor, 1/accumulation steps).
// Instantiated for double and float.
#pragma once
#include <cstdint>

namespace orthofed {

template <class T>
struct OptimizedTensor {
  T* parameter = nullptr;
  const T* gradient = nullptr;
  T* m = nullptr;  // first moment / momentum
  T* v = nullptr;  // second moment (AdamW only)
  int64_t size = 0;
  double weight_decay = 0;
};

struct AdamWStep {
  double learning_rate = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  int64_t step = 1;  // t, from 1
  double gradient_scale = 1;
};

struct SgdStep {
  double learning_rate = 1e-2, momentum = 0.9;
  double gradient_scale = 1;
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void adamw(const OptimizedTensor<T>* tensors, int64_t count, const AdamWStep& step);

template <class T>
void sgd(const OptimizedTensor<T>* tensors, int64_t count, const SgdStep& step);

}  // namespace orthofed::cpu
