// GELU (Hendrycks, Gimpel, arXiv 1606.08415):  y = x * Phi(x).
//   erf  form: Phi(x) = (1 + erf(x / sqrt 2)) / 2                            (timm, DINOv2)
//   tanh form: Phi(x) = (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2        (cuBLASLt, SigLIP)
//   quick:     Phi(x) = 1 / (1 + exp(-1.702 x)) = (1 + tanh(0.851 x)) / 2    (OpenAI's CLIP)
// Instantiated for double, float and bf16. Phi, tanh and exp are those of core/math.h.
//
// Error: 4 eps |x| + eps(T)/2 |y| forward, 4 eps |dy| (1 + |x|) + eps(T)/2 |dx| backward, eps that
// of Accum<T>. In the tanh and quick forms that is an absolute error in the far negative tail,
// where y underflows to 0, as torch's does. Per element: forward 2 sizeof(T) bytes and about 45
// flops (erf) or 30 (tanh, quick); backward 3 sizeof(T) bytes and about 50 or 40.
#pragma once
#include <cstdint>

#include "kernels/core/cost.h"
#include "kernels/core/types.h"

namespace orthofed {
enum class GeluKind { erf, tanh, quick };

// y may be x.
template <class T>
struct GeluForward {
  const T* x;  // [rows, cols] pitch ldx
  int64_t ldx;
  T* y;  // [rows, cols] pitch ldy
  int64_t ldy;
  int64_t rows, cols;
  GeluKind kind;
};

// dx = dy * (Phi(x) + x * phi(x)). dx may be dy.
template <class T>
struct GeluBackward {
  const T* dy;  // [rows, cols] pitch lddy
  int64_t lddy;
  const T* x;  // [rows, cols] pitch ldx, what forward was given
  int64_t ldx;
  T* dx;  // [rows, cols] pitch lddx
  int64_t lddx;
  int64_t rows, cols;
  GeluKind kind;
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void gelu_forward(const GeluForward<T>& a);
template <class T>
void gelu_backward(const GeluBackward<T>& a);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost gelu_forward(const GeluForward<T>& a) {
  const double n = double(a.rows) * a.cols;
  return {n * (a.kind == GeluKind::erf ? 45 : 30), moved(a.x, n) + written(a.y, n)};
}
template <class T>
Cost gelu_backward(const GeluBackward<T>& a) {
  const double n = double(a.rows) * a.cols;
  return {n * (a.kind == GeluKind::erf ? 50 : 40),
          moved(a.dy, n) + moved(a.x, n) + written(a.dx, n)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void gelu_forward(const GeluForward<T>& a, const Stream& stream);
template <class T, class Stream>
void gelu_backward(const GeluBackward<T>& a, const Stream& stream);

}  // namespace orthofed::gpu
