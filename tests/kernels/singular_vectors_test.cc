#include "kernels/orthogonality/singular_vectors.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/core/philox.h"
#include "tests/kernels/orthogonality_reference.h"
#include "tests/support/buffer.h"
#include "tests/support/compare.h"
#include "tests/support/random.h"

namespace orthofed::test {
namespace {

using reference::inner;
using reference::product;

// Orthonormal eigenvectors of W^T W in descending order, and nothing larger left outside.
template <class T>
void expect_top(const Buffer<T>& w, int64_t k, double tolerance) {
  Buffer<T> v(k, w.cols()), again(k, w.cols());
  cpu::top_right_singular_vectors(w.data(), w.ld(), w.rows(), w.cols(), k, v.data());
  cpu::top_right_singular_vectors(w.data(), w.ld(), w.rows(), w.cols(), k, again.data());
  EXPECT_TRUE(identical(v, again));
  EXPECT_TRUE(v.verify());
  const auto dense_w = w.to_double(), dense_v = v.to_double();
  std::vector<double> vt(w.cols() * k), wt(w.cols() * w.rows());
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j < w.cols(); ++j) vt[j * k + i] = dense_v[i * w.cols() + j];
  for (int64_t i = 0; i < w.rows(); ++i)
    for (int64_t j = 0; j < w.cols(); ++j) wt[j * w.rows() + i] = dense_w[i * w.cols() + j];
  const auto wv = product(dense_w, vt, w.rows(), w.cols(), k);  // [out, k]
  const auto gv = product(wt, wv, w.cols(), w.rows(), k);       // [in, k]
  const auto gram = product(dense_v, vt, k, w.cols(), k);       // [k, k]
  const auto ritz = product(dense_v, gv, k, w.cols(), k);       // [k, k]: diag(s^2)
  const double largest = ritz[0];
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) EXPECT_NEAR(gram[i * k + j], i == j, tolerance);
    if (i > 0) {
      EXPECT_TRUE(ritz[i * k + i] <= ritz[(i - 1) * k + i - 1] + tolerance * largest);
    }
    for (int64_t j = 0; j < w.cols(); ++j)
      EXPECT_NEAR(gv[j * k + i], ritz[i * k + i] * vt[j * k + i], tolerance * largest);
  }
  // Power iteration on what is orthogonal to V finds nothing above the smallest chosen one.
  std::vector<double> x(w.cols());
  const Philox rng = PhiloxKey(seed()).with(99);
  for (size_t i = 0; i < x.size(); ++i) x[i] = normal(rng, i);
  double left = 0;
  for (int step = 0; step < 200; ++step) {
    const double before = std::sqrt(inner(x, x));
    const auto along = product(dense_v, x, k, w.cols(), 1);
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < w.cols(); ++j) x[j] -= along[i] * dense_v[i * w.cols() + j];
    const double norm = std::sqrt(inner(x, x));
    if (norm <= tolerance * before) break;  // nothing but rounding is left
    for (double& value : x) value /= norm;
    const auto wx = product(dense_w, x, w.rows(), w.cols(), 1);
    left = inner(wx, wx);
    x = product(wt, wx, w.cols(), w.rows(), 1);
  }
  EXPECT_TRUE(left <= ritz[k * k - 1] + tolerance * largest) << left << " " << ritz[k * k - 1];
}

TEST(TopRightSingularVectors, AreTheLargestEigenvectors) {
  for (const auto& [out, in, k] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {7, 5, 5}, {5, 7, 3}, {131, 97, 16}, {97, 131, 16}, {64, 191, 1}}) {
    SCOPED_TRACE(std::to_string(out) + " x " + std::to_string(in));
    Buffer<double> w(out, in, 3);
    fill_normal(w, 21);
    expect_top(w, k, 1e-9);
    expect_top(convert<float>(w, 2), k, 1e-5);
  }
}

TEST(TopRightSingularVectors, EqualAndVanishingSingularValues) {
  Buffer<double> identity(40, 40);
  identity.fill(0);
  for (int64_t i = 0; i < 40; ++i) identity(i, i) = 1;
  expect_top(identity, 16, 1e-9);
  Buffer<double> pairs(90, 90);  // every singular value twice, over eight orders of magnitude
  pairs.fill(0);
  for (int64_t i = 0; i < 90; ++i) pairs(i, 89 - i) = std::pow(10.0, -double(i / 2) / 5);
  expect_top(pairs, 15, 1e-9);
  Buffer<double> rank_two(30, 60);
  for (int64_t i = 0; i < 30; ++i)
    for (int64_t j = 0; j < 60; ++j) rank_two(i, j) = i + 1 + (j % 7) * (i % 3);
  expect_top(rank_two, 16, 1e-9);
  Buffer<double> zero(20, 20);
  zero.fill(0);
  expect_top(zero, 16, 1e-9);
}

TEST(TopRightSingularVectors, BadInputIsRefused) {
  Buffer<double> w(4, 6), v(5, 6);
  fill_normal(w, 22);
  EXPECT_THROW(cpu::top_right_singular_vectors(w.data(), w.ld(), 4, 6, 5, v.data()), Error);
  EXPECT_THROW(cpu::top_right_singular_vectors(w.data(), w.ld(), 4, 6, 0, v.data()), Error);
  w(1, 1) = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THROW(cpu::top_right_singular_vectors(w.data(), w.ld(), 4, 6, 2, v.data()), Error);
}

}  // namespace
}  // namespace orthofed::test
