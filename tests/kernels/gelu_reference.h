// GELU, its derivative and the logistic function in double, as the formulas of gelu.h and swiglu.h
// say. The tests and the benchmarks of gelu, swiglu and of products with GELU compare with them.
#pragma once
#include <cmath>

#include "kernels/gelu/gelu.h"

namespace orthofed::reference {

inline constexpr double kPi = 3.14159265358979323846;

inline double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

inline double gelu(double x, GeluKind kind) {
  if (kind == GeluKind::quick) return x * sigmoid(1.702 * x);
  return kind == GeluKind::erf
             ? 0.5 * x * std::erfc(-x / std::sqrt(2.0))
             : 0.5 * x * (1 + std::tanh(std::sqrt(2 / kPi) * (x + 0.044715 * x * x * x)));
}

inline double gelu_derivative(double x, GeluKind kind) {
  if (kind == GeluKind::erf)
    return 0.5 * std::erfc(-x / std::sqrt(2.0)) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * kPi);
  if (kind == GeluKind::quick) {
    const double p = sigmoid(1.702 * x);
    return p + 1.702 * x * p * (1 - p);
  }
  const double t = std::tanh(std::sqrt(2 / kPi) * (x + 0.044715 * x * x * x));
  return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * std::sqrt(2 / kPi) * (1 + 3 * 0.044715 * x * x);
}

}  // namespace orthofed::reference
