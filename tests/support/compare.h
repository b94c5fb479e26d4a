// Results are compared with a reference in double, element by element. There are no norms, because
// a norm hides one wrong element among many right ones. NaN never passes.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "kernels/core/types.h"
#include "tests/support/buffer.h"

namespace orthofed::test {

// |got - want| <= relative * |want| + absolute
struct Budget {
  double relative = 0, absolute = 0;
};

// Compares got with want [rows * cols]; element (i, j) may be off by allowed(i, j).
template <class T, class F>
requires std::is_invocable_r_v<double, F, int64_t, int64_t> testing::AssertionResult close(
    const Buffer<T>& got, const std::vector<double>& want, F allowed) {
  if (want.size() != static_cast<size_t>(got.rows() * got.cols()))
    return testing::AssertionFailure() << "the reference has " << want.size() << " elements, not "
                                       << got.rows() << " x " << got.cols();
  int64_t bad = 0, worst_i = 0, worst_j = 0;
  double worst = -1;  // error in units of the budget
  for (int64_t i = 0; i < got.rows(); ++i) {
    for (int64_t j = 0; j < got.cols(); ++j) {
      const double g = static_cast<double>(got(i, j));
      const double w = want[static_cast<size_t>(i * got.cols() + j)];
      if (g == w) continue;  // equal infinities, too
      const double error = std::abs(g - w), budget = allowed(i, j);
      if (error <= budget) continue;
      ++bad;
      const double ratio = error / budget;
      if (!(ratio <= worst)) {  // NaN is worse than anything
        worst = std::isnan(ratio) ? std::numeric_limits<double>::infinity() : ratio;
        worst_i = i;
        worst_j = j;
      }
    }
  }
  if (bad == 0) return got.verify();
  return testing::AssertionFailure()
         << bad << " of " << want.size() << " elements are off; the worst is [" << worst_i << ", "
         << worst_j << "]: got " << static_cast<double>(got(worst_i, worst_j)) << ", want "
         << want[static_cast<size_t>(worst_i * got.cols() + worst_j)] << " +- "
         << allowed(worst_i, worst_j);
}

template <class T>
testing::AssertionResult close(const Buffer<T>& got, const std::vector<double>& want,
                               Budget budget) {
  return close(got, want, [&](int64_t i, int64_t j) -> double {
    return budget.relative * std::abs(want[static_cast<size_t>(i * got.cols() + j)]) +
           budget.absolute;
  });
}

// Equal bit for bit: two runs of a deterministic kernel.
template <class T>
testing::AssertionResult identical(const Buffer<T>& a, const Buffer<T>& b) {
  if (a.rows() != b.rows() || a.cols() != b.cols())
    return testing::AssertionFailure() << "shapes differ";
  for (int64_t i = 0; i < a.rows(); ++i)
    for (int64_t j = 0; j < a.cols(); ++j)
      if (std::memcmp(&a(i, j), &b(i, j), sizeof(T)) != 0)
        return testing::AssertionFailure()
               << "[" << i << ", " << j << "]: " << static_cast<double>(a(i, j)) << " and "
               << static_cast<double>(b(i, j)) << " differ in their bits";
  return testing::AssertionSuccess();
}

}  // namespace orthofed::test
