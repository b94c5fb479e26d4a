// SwiGLU (Shazeer, arXiv 2002.05202), the gated MLP of DINOv2's giant and of UNI 2. With x = [g|u],
//
//   y = silu(g) * u,   silu(g) = g * s(g),   s(g) = 1 / (1 + exp(-g)) = (1 + tanh(g / 2)) / 2
//
// Instantiated for double, float and bf16. tanh is the polynomial of core/math.h.
//
// Error, with eps that of Accum<T>: forward 4 eps |g u| + eps(T)/2 |y|; backward 4 eps |dy u| (1 +
// |g|) and 4 eps |dy g|, each with eps(T)/2 of the result. Per element of y: forward 3 sizeof(T)
// bytes and about 30 flops, backward 5 sizeof(T) bytes and about 40.
#pragma once
#include <cstdint>

#include "kernels/core/cost.h"
#include "kernels/core/types.h"

namespace orthofed {

template <class T>
struct SwigluForward {
  const T* x;  // [rows, 2 * cols] pitch ldx: gate, then up
  int64_t ldx;
  T* y;  // [rows, cols] pitch ldy
  int64_t ldy;
  int64_t rows, cols;
};

// dg = dy u s (1 + g (1 - s)),  du = dy g s. dx may be x.
template <class T>
struct SwigluBackward {
  const T* dy;  // [rows, cols] pitch lddy
  int64_t lddy;
  const T* x;  // [rows, 2 * cols] pitch ldx
  int64_t ldx;
  T* dx;  // [rows, 2 * cols] pitch lddx
  int64_t lddx;
  int64_t rows, cols;
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void swiglu_forward(const SwigluForward<T>& a);
template <class T>
void swiglu_backward(const SwigluBackward<T>& a);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost swiglu_forward(const SwigluForward<T>& a) {
  const double n = double(a.rows) * a.cols;
  return {30 * n, moved(a.x, 2 * n) + written(a.y, n)};
}
template <class T>
Cost swiglu_backward(const SwigluBackward<T>& a) {
  const double n = double(a.rows) * a.cols;
  return {40 * n, moved(a.dy, n) + moved(a.x, 2 * n) + written(a.dx, 2 * n)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void swiglu_forward(const SwigluForward<T>& a, const Stream& stream);
template <class T, class Stream>
void swiglu_backward(const SwigluBackward<T>& a, const Stream& stream);

}  // namespace orthofed::gpu
