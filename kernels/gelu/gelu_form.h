// The forms of GELU as functions of one element, for every kernel that applies it: the plain
// ones here and the epilogues of matrix products. Formulas: gelu.h.
#pragma once
#include "kernels/core/math.h"
#include "kernels/gelu/gelu.h"

namespace orthofed {

struct GeluErf {
  template <class A>
  OF_HOST_DEVICE static A exponential(A x) {
    return exp_(A(-0.5) * x * x);
  }
  // Phi(x); GELU is x Phi(x).
  template <class A>
  OF_HOST_DEVICE static A phi(A x) {
    return normal_cdf_(x, exponential(x));
  }
  // d(x Phi(x))/dx = Phi(x) + x Phi'(x)
  template <class A>
  OF_HOST_DEVICE static A derivative(A x) {
    const A e = exponential(x);
    return normal_cdf_(x, e) + x * (A(0.39894228040143267794) * e);  // 1/sqrt(2 pi)
  }
};

struct GeluTanh {
  static constexpr double kScale = 0.79788456080286535588, kCubic = 0.044715;  // sqrt(2/pi)
  template <class A>
  OF_HOST_DEVICE static A tanh_term(A x) {
    return tanh_(A(kScale) * x * (A(1) + A(kCubic) * x * x));
  }
  template <class A>
  OF_HOST_DEVICE static A phi(A x) {
    return A(0.5) + A(0.5) * tanh_term(x);
  }
  template <class A>
  OF_HOST_DEVICE static A derivative(A x) {
    const A t = tanh_term(x);
    const A inner = A(kScale) * (A(1) + A(3 * kCubic) * x * x);
    return A(0.5) + A(0.5) * t + A(0.5) * x * (A(1) - t * t) * inner;
  }
};

struct GeluQuick {
  static constexpr double kHalfScale = 0.851;  // of 1.702
  template <class A>
  OF_HOST_DEVICE static A phi(A x) {
    return A(0.5) + A(0.5) * tanh_(A(kHalfScale) * x);
  }
  template <class A>
  OF_HOST_DEVICE static A derivative(A x) {
    const A p = phi(x);
    return p + A(2 * kHalfScale) * x * p * (A(1) - p);
  }
};

// f(Form{}) for the form of that kind, on the host.
template <class F>
void with_gelu_form(GeluKind kind, const F& f) {
  switch (kind) {
    case GeluKind::erf:
      return f(GeluErf{});
    case GeluKind::tanh:
      return f(GeluTanh{});
    case GeluKind::quick:
      return f(GeluQuick{});
  }
}

}  // namespace orthofed
