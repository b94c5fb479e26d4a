// Global gradient norm over many tensors, and the factor that clips it (Pascanu et al., arXiv
// 1211.5063):
//
//   norm   = scale sqrt(sum over all tensors of g^2)
//   factor = scale min(1, max_norm / (norm + 1e-6))          max_norm 0: factor = scale
//
// The 1e-6 is torch.nn.utils.clip_grad_norm_'s. A NaN or infinity in any gradient makes the norm
// NaN or infinite and the factor NaN, with which an optimiser leaves everything as it is
// (kernels/optimizer). Instantiated for double and float.
//
// Squares and sums are in double, in chunks of 4096 elements (kernels/core/chunks.h) and then over
// the chunks, in an order that the sizes alone fix. Relative error of the norm, of the factor twice
// that: 2^-53 (chunks/2 + 135). Per element: sizeof(T) bytes, 2 flops.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/core/chunks.h"
#include "kernels/core/cost.h"

namespace orthofed {

template <class T>
struct GradientSpan {
  const T* data = nullptr;
  int64_t size = 0;
  int64_t first_chunk = 0;  // number_chunks() fills it in
};

// The second formula above.
OF_HOST_DEVICE inline double gradient_factor(double norm, double scale, double max_norm) {
  if (!std::isfinite(norm)) return double(NAN);
  const double clip = max_norm / (norm + 1e-6);
  return max_norm > 0 && clip < 1 ? scale * clip : scale;
}

// Scratch on a GPU: grad_norm_scratch(chunks) bytes.
template <class T>
struct GradNorm {
  const GradientSpan<T>* gradients;  // [count]
  int64_t count, chunks;             // `chunks` in all; 0: norm 0
  const double* scale;               // one number
  double max_norm;
  double *norm, *factor;  // one number each
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void grad_norm(const GradNorm<T>& a);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost grad_norm(const GradNorm<T>& a) {
  Cost c{0, moved(a.scale, 1) + written(a.norm, 1) + written(a.factor, 1)};
  for (int64_t k = 0; k < a.count; ++k)
    c += {2.0 * a.gradients[k].size, moved(a.gradients[k].data, a.gradients[k].size)};
  return c;
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void grad_norm(const GradNorm<T>& a, const Stream& stream);

inline size_t grad_norm_scratch(int64_t chunks) {
  return size_t(chunks) * sizeof(double);
}

}  // namespace orthofed::gpu
