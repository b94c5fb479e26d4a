// AdamW (Loshchilov, Hutter, arXiv 1711.05101, as torch.optim.AdamW computes it) and SGD with
// momentum, over many tensors in one call.
//
//   AdamW:  p -= lr * wd * p;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//           p -= lr * (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps)
//   SGD:    g += wd * p;  m = mu m + g;  p -= lr m
//
// g is the stored gradient times the gradient scale (kernels/grad_norm: the clip factor and
// 1/accumulation steps). A gradient scale that is not finite, from a gradient that is not, changes
// nothing at all. Instantiated for double and float. m and v are 0 before step 1.
//
// Error of p a step: eps (2 |p| + 8 lr U), of m and v a few eps. U = mean|g|' / (sqrt(v') + eps),
// with mean|g| the first moment of |g|, is about 1 and at most (1-b1) / sqrt((1-b2) (1 - b1^2/b2))
// = 7.3 (Cauchy-Schwarz). Its factor, in eps: 2 from the four roundings of m's terms, 1.5 from half
// of the six of v's, 3.5 from the root and its scale, the sum, the rate, the product and the
// quotient, and one more where p is rounded. SGD rounds less. A gradient that is itself wrong by d
// moves p by up to lr whatever the size of d (g/|g|): compare gradients, not parameters.
//
// Per element: AdamW reads p, g, m, v and writes p, m, v (28 bytes in float), 14 flops; SGD reads
// p, g, m and writes p, m (20 bytes), 6 flops; zeroing g writes 4 bytes more.
#pragma once
#include <cstdint>

#include "kernels/core/chunks.h"
#include "kernels/core/cost.h"

namespace orthofed {

template <class T>
struct OptimizedTensor {
  T* parameter = nullptr;
  T* gradient = nullptr;
  T* m = nullptr;  // first moment / momentum
  T* v = nullptr;  // second moment (AdamW only)
  int64_t size = 0;
  double weight_decay = 0;
  int64_t first_chunk = 0;  // number_chunks() fills it in
};

// The pointers are to what changes from step to step: device memory on a GPU, read when the step
// runs, so that a recorded one can be replayed.
struct AdamWStep {
  const double* learning_rate = nullptr;
  const double* gradient_scale = nullptr;
  const int64_t* step = nullptr;  // t, from 1
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  bool zero_gradients = false;  // once they have been used
};

struct SgdStep {
  const double* learning_rate = nullptr;
  const double* gradient_scale = nullptr;
  double momentum = 0.9;
  bool zero_gradients = false;
};

// Both of `chunks` chunks in all (kernels/core/chunks.h). Tensors may have any size, 0 too; their
// buffers must not overlap.
template <class T>
struct AdamW {
  const OptimizedTensor<T>* tensors;  // [count]
  int64_t count, chunks;
  AdamWStep step;
};
template <class T>
struct Sgd {
  const OptimizedTensor<T>* tensors;  // [count]
  int64_t count, chunks;
  SgdStep step;
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void adamw(const AdamW<T>& a);
template <class T>
void sgd(const Sgd<T>& a);

}  // namespace orthofed::cpu

namespace orthofed::cost {

// A gradient that is zeroed once it has been used is written as well.
template <class T>
Cost adamw(const AdamW<T>& a) {
  Cost c;
  for (const OptimizedTensor<T>* t = a.tensors; t != a.tensors + a.count; ++t)
    c += {14.0 * t->size, written(t->parameter, t->size, true) +
                              written(t->gradient, t->size, a.step.zero_gradients) +
                              written(t->m, t->size, true) + written(t->v, t->size, true)};
  return c;
}
template <class T>
Cost sgd(const Sgd<T>& a) {
  Cost c;
  for (const OptimizedTensor<T>* t = a.tensors; t != a.tensors + a.count; ++t)
    c += {6.0 * t->size, written(t->parameter, t->size, true) +
                             written(t->gradient, t->size, a.step.zero_gradients) +
                             written(t->m, t->size, true)};
  return c;
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void adamw(const AdamW<T>& a, const Stream& stream);
template <class T, class Stream>
void sgd(const Sgd<T>& a, const Stream& stream);

}  // namespace orthofed::gpu
