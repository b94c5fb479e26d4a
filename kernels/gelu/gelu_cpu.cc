#include "kernels/gelu/gelu.h"

#include "kernels/core/math.h"
#include "kernels/core/rows.h"

namespace orthofed::cpu {
namespace {

// Phi and d(x Phi)/dx = Phi + x Phi' of each form.
struct ErfForm {
  template <class A>
  static A phi(A x) {
    return A(0.5) + A(0.5) * erf_(x * A(0.70710678118654752440));  // 1/sqrt(2)
  }
  template <class A>
  static A derivative(A x) {
    const A density = A(0.39894228040143267794) * exp_(A(-0.5) * x * x);  // 1/sqrt(2 pi)
    return phi(x) + x * density;
  }
};

struct TanhForm {
  static constexpr double kScale = 0.79788456080286535588, kCubic = 0.044715;  // sqrt(2/pi)
  template <class A>
  static A tanh_term(A x) {
    return tanh_(A(kScale) * x * (A(1) + A(kCubic) * x * x));
  }
  template <class A>
  static A phi(A x) {
    return A(0.5) + A(0.5) * tanh_term(x);
  }
  template <class A>
  static A derivative(A x) {
    const A t = tanh_term(x);
    const A inner = A(kScale) * (A(1) + A(3 * kCubic) * x * x);
    return A(0.5) + A(0.5) * t + A(0.5) * x * (A(1) - t * t) * inner;
  }
};

template <class Form, class T>
void forward(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols) {
  using A = Accum<T>;
  parallel_for(rows, row_grain(cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* xi = x + i * ldx;
      T* yi = y + i * ldy;
#pragma GCC ivdep
      for (int64_t j = 0; j < cols; ++j) yi[j] = T(A(xi[j]) * Form::phi(A(xi[j])));
    }
  });
}

template <class Form, class T>
void backward(const T* dy, int64_t lddy, const T* x, int64_t ldx, T* dx, int64_t lddx, int64_t rows,
              int64_t cols) {
  using A = Accum<T>;
  parallel_for(rows, row_grain(cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* dyi = dy + i * lddy;
      const T* xi = x + i * ldx;
      T* dxi = dx + i * lddx;
#pragma GCC ivdep
      for (int64_t j = 0; j < cols; ++j) dxi[j] = T(A(dyi[j]) * Form::derivative(A(xi[j])));
    }
  });
}

}  // namespace

template <class T>
void gelu_forward(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols,
                  GeluKind kind) {
  if (kind == GeluKind::erf)
    forward<ErfForm>(x, ldx, y, ldy, rows, cols);
  else
    forward<TanhForm>(x, ldx, y, ldy, rows, cols);
}

template <class T>
void gelu_backward(const T* dy, int64_t lddy, const T* x, int64_t ldx, T* dx, int64_t lddx,
                   int64_t rows, int64_t cols, GeluKind kind) {
  if (kind == GeluKind::erf)
    backward<ErfForm>(dy, lddy, x, ldx, dx, lddx, rows, cols);
  else
    backward<TanhForm>(dy, lddy, x, ldx, dx, lddx, rows, cols);
}

#define OF_INSTANTIATE(T)                                                                    \
  template void gelu_forward<T>(const T*, int64_t, T*, int64_t, int64_t, int64_t, GeluKind); \
  template void gelu_backward<T>(const T*, int64_t, const T*, int64_t, T*, int64_t, int64_t, \
                                 int64_t, GeluKind);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
