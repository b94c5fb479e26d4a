#include "kernels/optimizer/optimizer.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/compare.h"
#include "tests/support/isa.h"
#include "tests/support/random.h"

namespace orthofed::test {
namespace {

// Several tensors of a step; 16384 elements are one chunk.
constexpr int64_t kSizes[] = {0, 1, 17, 16384, 16385, 40001};
constexpr double kDecays[] = {0.01, 0, 0.1, 0.01, 0, 0.01};
constexpr int kTensors = 6, kSteps = 3;

template <class T>
struct Group {
  Group() {
    for (int k = 0; k < kTensors; ++k) {
      for (auto* list : {&p, &g, &m, &v}) list->emplace_back(1, kSizes[k]);
      fill_normal(p.back(), 10 + uint64_t(k));
      m.back().fill(0);
      v.back().fill(0);
    }
    draw_gradients(0);
  }
  void draw_gradients(int step) {
    for (int k = 0; k < kTensors; ++k) fill_normal(g[size_t(k)], uint64_t(100 * step + k), 0, 1e-2);
  }
  std::vector<OptimizedTensor<T>> tensors() {
    std::vector<OptimizedTensor<T>> list;
    for (size_t k = 0; k < size_t(kTensors); ++k)
      list.push_back({p[k].data(), g[k].data(), m[k].data(), v[k].data(), kSizes[k], kDecays[k]});
    return list;
  }
  std::vector<Buffer<T>> p, g, m, v;  // one [1, size] a tensor
};

// The equations of optimizer.h, in the order they are written there.
void reference_adamw(double& p, double g, double& m, double& v, double decay, const AdamWStep& s) {
  g *= s.gradient_scale;
  p -= s.learning_rate * decay * p;
  m = s.beta1 * m + (1 - s.beta1) * g;
  v = s.beta2 * v + (1 - s.beta2) * g * g;
  p -= s.learning_rate * (m / (1 - std::pow(s.beta1, double(s.step)))) /
       (std::sqrt(v / (1 - std::pow(s.beta2, double(s.step)))) + s.eps);
}
void reference_sgd(double& p, double g, double& m, double decay, const SgdStep& s) {
  g = g * s.gradient_scale + decay * p;
  m = s.momentum * m + g;
  p -= s.learning_rate * m;
}

template <class T>
class Optimizer : public testing::Test {
 protected:
  // p rounds a few times a step; a step moves it by about learning_rate.
  static double budget(double p, double learning_rate) {
    return kSteps * std::max(epsilon<T>, 0x1p-50) * (2 * std::abs(p) + 32 * learning_rate);
  }
};
using Types = testing::Types<double, float>;
TYPED_TEST_SUITE(Optimizer, Types);

TYPED_TEST(Optimizer, AdamWFollowsItsEquations) {
  using T = TypeParam;
  for_each_isa([] {
    Group<T> group, again;
    std::vector<std::vector<double>> p, m, v;
    for (size_t k = 0; k < size_t(kTensors); ++k) {
      p.push_back(group.p[k].to_double());
      m.push_back(group.m[k].to_double());
      v.push_back(group.v[k].to_double());
    }
    AdamWStep step;
    step.learning_rate = 1e-2;
    step.gradient_scale = 0.3;
    for (step.step = 1; step.step <= kSteps; ++step.step) {
      for (auto* one : {&group, &again}) {
        one->draw_gradients(int(step.step));
        cpu::adamw(one->tensors().data(), int64_t{kTensors}, step);
      }
      for (size_t k = 0; k < size_t(kTensors); ++k)
        for (size_t i = 0; i < p[k].size(); ++i)
          reference_adamw(p[k][i], double(group.g[k](0, int64_t(i))), m[k][i], v[k][i], kDecays[k],
                          step);
    }
    for (size_t k = 0; k < size_t(kTensors); ++k) {
      SCOPED_TRACE(testing::Message() << "tensor " << k);
      EXPECT_TRUE(close(group.p[k], p[k], [&](int64_t, int64_t i) -> double {
        return TestFixture::budget(p[k][size_t(i)], step.learning_rate);
      }));
      const double eps = std::max(epsilon<T>, 0x1p-50);
      EXPECT_TRUE(close(group.m[k], m[k], Budget{8 * eps, 8 * eps * 1e-2}));
      EXPECT_TRUE(close(group.v[k], v[k], Budget{16 * eps, 0}));
      EXPECT_TRUE(identical(group.p[k], again.p[k]));
    }
  });
}

TYPED_TEST(Optimizer, SgdFollowsItsEquations) {
  using T = TypeParam;
  for_each_isa([] {
    Group<T> group;
    std::vector<std::vector<double>> p, m;
    for (size_t k = 0; k < size_t(kTensors); ++k) {
      p.push_back(group.p[k].to_double());
      m.push_back(group.m[k].to_double());
    }
    const SgdStep step{.learning_rate = 0.1, .momentum = 0.9, .gradient_scale = 2};
    for (int t = 1; t <= kSteps; ++t) {
      group.draw_gradients(t);
      cpu::sgd(group.tensors().data(), int64_t{kTensors}, step);
      for (size_t k = 0; k < size_t(kTensors); ++k)
        for (size_t i = 0; i < p[k].size(); ++i)
          reference_sgd(p[k][i], double(group.g[k](0, int64_t(i))), m[k][i], kDecays[k], step);
    }
    for (size_t k = 0; k < size_t(kTensors); ++k) {
      SCOPED_TRACE(testing::Message() << "tensor " << k);
      EXPECT_TRUE(close(group.p[k], p[k], [&](int64_t, int64_t i) -> double {
        return TestFixture::budget(p[k][size_t(i)], step.learning_rate);
      }));
    }
  });
}

// From zero moments the bias corrections cancel: the first step is lr * g / (|g| + eps).
TEST(AdamW, FirstStepHasTheSizeOfTheLearningRate) {
  double p[] = {1, 1, 1}, m[3] = {}, v[3] = {};
  const double g[] = {1e-3, -5, 0};
  const OptimizedTensor<double> tensor{p, g, m, v, 3, 0};
  AdamWStep step;
  step.learning_rate = 0.1;
  cpu::adamw(&tensor, 1, step);
  EXPECT_NEAR(p[0], 1 - 0.1 * 1e-3 / (1e-3 + 1e-8), 1e-12);
  EXPECT_NEAR(p[1], 1.1, 1e-9);
  EXPECT_EQ(p[2], 1);
}

// A decay below float's resolution of 1 - decay still acts: 1000 steps of 1e-5 take off 1 %.
TEST(AdamW, SmallDecayIsNotRoundedAway) {
  float p = 1.0f, m = 0, v = 0;
  const float g = 0;
  const OptimizedTensor<float> tensor{&p, &g, &m, &v, 1, 0.01};
  AdamWStep step;
  step.learning_rate = 1e-3;
  for (step.step = 1; step.step <= 1000; ++step.step) cpu::adamw(&tensor, 1, step);
  EXPECT_NEAR(p, std::pow(1 - 1e-5, 1000), 5e-5);
}

}  // namespace
}  // namespace orthofed::test
