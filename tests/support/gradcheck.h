// Gradients are checked against central finite differences in double:
//   dL/dx = (L(x + h) - L(x - h)) / 2h + O(h^2) + O(eps L / h).
// h = 1e-5 balances the two: about 1e-10 relative to the size of L and its third derivative.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/support/buffer.h"
#include "tests/support/compare.h"

namespace orthofed::test {

// loss() is a scalar function of x, which is changed in place and restored. gradient has x's shape.
template <class Loss>
testing::AssertionResult check_gradient(Loss&& loss, Buffer<double>& x,
                                        const Buffer<double>& gradient, double tolerance = 1e-7) {
  std::vector<double> numeric;  // [rows * cols]
  double scale = 1;
  for (int64_t i = 0; i < x.rows(); ++i) {
    for (int64_t j = 0; j < x.cols(); ++j) {
      const double kept = x(i, j), h = 1e-5 * std::max(1.0, std::abs(kept));
      x(i, j) = kept + h;
      const double above = loss(), x_above = x(i, j);
      x(i, j) = kept - h;
      const double below = loss(), x_below = x(i, j);
      x(i, j) = kept;
      numeric.push_back((above - below) / (x_above - x_below));
      scale = std::max({scale, std::abs(above), std::abs(below)});
    }
  }
  return close(gradient, numeric, Budget{tolerance, tolerance * scale});
}

// L = sum of weight * y: the usual scalar, whose gradient with respect to y is `weight`.
inline double weighted_sum(const Buffer<double>& y, const Buffer<double>& weight) {
  double sum = 0;
  for (int64_t i = 0; i < y.rows(); ++i)
    for (int64_t j = 0; j < y.cols(); ++j) sum += y(i, j) * weight(i, j);
  return sum;
}

}  // namespace orthofed::test
