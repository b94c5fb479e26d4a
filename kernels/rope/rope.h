// Rotary position embedding (Su et al., arXiv 2104.09864), in DINOv3's axial form (Simeoni et al.,
// arXiv 2508.10104): every head's q and k of a patch are turned by the patch's angles, pair (j, j +
// head_dim/2) by angle j. The class token and registers stay as they are.
//
//   y[j]          = x[j] cos_j - x[j + half] sin_j
//   y[j + half]   = x[j + half] cos_j + x[j] sin_j,    half = head_dim / 2
//
// A rotation's gradient is the rotation back: backward is forward with -sin. Instantiated for
// double, float and bf16.
//
// Error, with eps that of Accum<T>: 1.5 eps (|x[j]| + |x[j + half]|) + eps(T)/2 |y|. Per element 2
// sizeof(T) bytes and 3 flops; the tables stay in cache.
#pragma once
#include <cstdint>

#include "kernels/core/check.h"
#include "kernels/core/cost.h"
#include "kernels/core/types.h"

namespace orthofed {

// x [batch * tokens, at least heads * head_dim] pitch ldx: the first `heads` groups of head_dim
// columns are turned (q and k of a packed qkv: twice the model's heads), in the tokens from
// `prefix`.
struct RopeShape {
  int64_t batch = 0, tokens = 0, prefix = 0, heads = 0, head_dim = 0;
  int64_t ldx = 0;
};

inline void check(const RopeShape& s) {
  OF_CHECK(s.head_dim > 0 && s.head_dim % 2 == 0, "rope: head_dim must be even");
  OF_CHECK(s.prefix >= 0 && s.prefix <= s.tokens, "rope: more prefix tokens than tokens");
  OF_CHECK(s.ldx >= s.heads * s.head_dim, "rope: a pitch is smaller than its row");
}

// In place, of x or, back again, of its gradient.
template <class T>
struct Rope {
  T* x;
  const Accum<T>*cos, *sin;  // [tokens - prefix, head_dim / 2] dense
  RopeShape shape;
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void rope_forward(const Rope<T>& a);
template <class T>
void rope_backward(const Rope<T>& a);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost rope_forward(const Rope<T>& a) {
  const RopeShape& s = a.shape;
  const double patches = double(s.tokens - s.prefix), angles = patches * (s.head_dim / 2);
  const double n = s.batch * patches * s.heads * s.head_dim;
  return {3 * n, written(a.x, n, true) + moved(a.cos, angles) + moved(a.sin, angles)};
}
template <class T>
Cost rope_backward(const Rope<T>& a) {
  return rope_forward(a);
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void rope_forward(const Rope<T>& a, const Stream& stream);
template <class T, class Stream>
void rope_backward(const Rope<T>& a, const Stream& stream);

}  // namespace orthofed::gpu
