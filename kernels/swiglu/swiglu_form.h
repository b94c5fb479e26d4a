// SwiGLU of one element, for both devices. Formulas: swiglu.h.
#pragma once
#include "kernels/core/math.h"

namespace orthofed {

template <class A>
OF_HOST_DEVICE A sigmoid(A g) {
  return A(0.5) + A(0.5) * tanh_(A(0.5) * g);
}

template <class A>
OF_HOST_DEVICE A swiglu(A g, A u) {
  return g * sigmoid(g) * u;
}

template <class A>
struct SwigluGradient {
  A gate, up;
};
template <class A>
OF_HOST_DEVICE SwigluGradient<A> swiglu_gradient(A dy, A g, A u) {
  const A s = sigmoid(g);
  return {dy * u * s * (A(1) + g * (A(1) - s)), dy * g * s};
}

}  // namespace orthofed
