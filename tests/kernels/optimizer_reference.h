// A step of one element in double, by the equations of optimizer.h, in the order they are written
// there. Its test and its benchmark compare with it.
#pragma once
#include <cmath>
#include <cstdint>

#include "kernels/optimizer/optimizer.h"

namespace orthofed::reference {

// The step's numbers lie in host memory.
inline void adamw(double& p, double g, double& m, double& v, double decay, const AdamWStep& s) {
  const double lr = *s.learning_rate, t = double(*s.step);
  g *= *s.gradient_scale;
  p -= lr * decay * p;
  m = s.beta1 * m + (1 - s.beta1) * g;
  v = s.beta2 * v + (1 - s.beta2) * g * g;
  p -= lr * (m / (1 - std::pow(s.beta1, t))) / (std::sqrt(v / (1 - std::pow(s.beta2, t))) + s.eps);
}

inline void sgd(double& p, double g, double& m, double decay, const SgdStep& s) {
  g = g * *s.gradient_scale + decay * p;
  m = s.momentum * m + g;
  p -= *s.learning_rate * m;
}

}  // namespace orthofed::reference
