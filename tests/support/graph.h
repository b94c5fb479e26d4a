// Whole graphs are checked in double: the gradient of every input against finite differences.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "engine/autograd/tape.h"
#include "kernels/core/philox.h"

namespace orthofed::test {

inline Tensor random_tensor(const Shape& shape, DType dtype, uint64_t seed, double scale = 1) {
  const Philox rng = PhiloxKey(seed).with("tensor");
  std::vector<double> v(size_t(shape.size()));
  for (size_t i = 0; i < v.size(); ++i) v[i] = scale * normal(rng, i);
  return Tensor::of(v, shape).to(dtype);
}

// |a - b| / |b| over all elements.
inline double relative_norm(const Tensor& a, const Tensor& b) {
  const std::vector<double> x = a.to_vector(), y = b.to_vector();
  if (x.size() != y.size()) return INFINITY;
  double difference = 0, norm = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    difference += (x[i] - y[i]) * (x[i] - y[i]);
    norm += y[i] * y[i];
  }
  return std::sqrt(difference) / (norm > 0 ? std::sqrt(norm) : 1);
}

// Every element of got within tolerance * (|want| + the largest |want|) of want: a sum errs by a
// share of its terms, which are as large as the tensor's elements are, not as this one is.
inline testing::AssertionResult elements_agree(const Tensor& got, const Tensor& want,
                                               double tolerance) {
  const std::vector<double> g = got.to_vector(), w = want.to_vector();
  if (g.size() != w.size())
    return testing::AssertionFailure() << got.shape().str() << " against " << want.shape().str();
  double largest = 0;
  for (const double x : w) largest = std::max(largest, std::abs(x));
  for (size_t i = 0; i < g.size(); ++i)
    if (!(std::abs(g[i] - w[i]) <= tolerance * (std::abs(w[i]) + largest)))
      return testing::AssertionFailure()
             << "element " << i << " of " << want.shape().str() << ": got " << g[i] << ", want "
             << w[i] << " +- " << tolerance * (std::abs(w[i]) + largest);
  return testing::AssertionSuccess();
}

// The scalar sum of weight * y, as an op.
inline Var weighted_sum(Tape& tape, const Var& y, const Tensor& weight) {
  double sum = 0;
  const std::vector<double> a = y.value().to_vector(), w = weight.to_vector();
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * w[i];
  const Var loss = tape.output(Tensor::full({1}, DType::f64, sum), tape.needs({&y}));
  tape.record({loss}, [y, weight, loss] {
    const Tensor g = weight.clone();
    const double seed = loss.grad().item();
    for (int64_t r = 0; r < g.rows(); ++r)
      for (int64_t c = 0; c < g.cols(); ++c) g.row<double>(r)[c] *= seed;
    y.give_grad(g);
  });
  return loss;
}

using Op = std::function<Var(Tape&)>;

// Runs op (which reads `inputs`, f64 leaves that require gradients) and compares the gradient of
// sum(random weight * output) with central differences, element by element.
inline testing::AssertionResult gradients_agree(const Op& op, const std::vector<Var>& inputs,
                                                double tolerance = 1e-6) {
  Tensor weight;
  {
    Tape tape(false);
    const Tensor y = op(tape).value();
    weight = random_tensor(y.shape(), DType::f64, 77);
  }
  auto loss_of = [&] {
    Tape tape(false);
    return weighted_sum(tape, op(tape), weight).value().item();
  };
  for (const Var& v : inputs) v.drop_grad();
  Tape tape;
  tape.backward(weighted_sum(tape, op(tape), weight));
  for (size_t n = 0; n < inputs.size(); ++n) {
    const Tensor& x = inputs[n].value();
    if (!inputs[n].has_grad())
      return testing::AssertionFailure() << "input " << n << " got no gradient";
    for (int64_t r = 0; r < x.rows(); ++r)
      for (int64_t c = 0; c < x.cols(); ++c) {
        double& element = x.row<double>(r)[c];
        const double kept = element, h = 1e-5 * std::max(1.0, std::abs(kept));
        element = kept + h;
        const double above = loss_of();
        element = kept - h;
        const double below = loss_of();
        element = kept;
        const double numeric = (above - below) / (2 * h);
        const double got = inputs[n].grad().row<double>(r)[c];
        const double budget = tolerance * std::max({1.0, std::abs(numeric), std::abs(above)});
        if (!(std::abs(got - numeric) <= budget))
          return testing::AssertionFailure() << "input " << n << " [" << r << ", " << c << "]: got "
                                             << got << ", finite differences say " << numeric;
      }
  }
  return testing::AssertionSuccess();
}

}  // namespace orthofed::test
