// AdamW (Loshchilov, Hutter, arXiv 1711.05101, as torch.optim.AdamW computes it) and SGD with
// momentum, over many tensors in one call.
//
//   AdamW:  p -= lr * wd * p;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//           p -= lr * (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps)
//   SGD:    g += wd * p;  m = mu m + g;  p -= lr m
//
// g is the stored gradient times `gradient_scale` (the clip factor, 1/accumulation steps).
// Instantiated for double and float. m and v are 0 before step 1.
//
// Error of p a step: eps (2 |p| + 32 lr), of m and v a few eps. A gradient that is itself wrong by
// d moves p by up to lr whatever the size of d (g/|g|): compare gradients, not parameters. Per
// element: AdamW reads p, g, m, v and writes p, m, v (28 bytes in float), 14 flops; SGD reads p, g,
// m and writes p, m (20 bytes), 6 flops.
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

// tensors [count], each of its own size (0 is fine) and weight decay; the buffers must not overlap.
template <class T>
void adamw(const OptimizedTensor<T>* tensors, int64_t count, const AdamWStep& step);

template <class T>
void sgd(const OptimizedTensor<T>* tensors, int64_t count, const SgdStep& step);

}  // namespace orthofed::cpu
