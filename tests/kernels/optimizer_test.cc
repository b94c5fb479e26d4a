#include "kernels/optimizer/optimizer.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/kernels/optimizer_reference.h"
#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/random.h"

namespace orthofed::test {
namespace {

// Several tensors of a step, around one chunk; rows that packs of four fit and others.
constexpr int64_t kSizes[] = {0, 1, 18, kChunk, kChunk + 1, 0, 2 * kChunk + 7};
constexpr double kDecays[] = {0.01, 0, 0.1, 0.01, 0, 0, 0.01};
constexpr int kTensors = 7, kSteps = 3;

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
  Buffer<OptimizedTensor<T>> tensors() {
    Buffer<OptimizedTensor<T>> list(1, kTensors);
    for (size_t k = 0; k < size_t(kTensors); ++k)
      list(0, int64_t(k)) = {p[k].data(), g[k].data(), m[k].data(),
                             v[k].data(), kSizes[k],   kDecays[k]};
    return list;
  }
  std::vector<Buffer<T>> p, g, m, v;  // one [1, size] a tensor
};

// The numbers that a step reads from device memory.
struct Numbers {
  Numbers(double learning_rate, double gradient_scale) : values(1, 2), step(1, 1) {
    values(0, 0) = learning_rate;
    values(0, 1) = gradient_scale;
    step(0, 0) = 1;
  }
  AdamWStep adamw() const {
    AdamWStep s;
    s.learning_rate = values.data();
    s.gradient_scale = values.data() + 1;
    s.step = step.data();
    return s;
  }
  SgdStep sgd() const {
    SgdStep s;
    s.learning_rate = values.data();
    s.gradient_scale = values.data() + 1;
    return s;
  }
  Buffer<double> values;
  Buffer<int64_t> step;
};

template <class T>
void adamw(const Queue& queue, Buffer<OptimizedTensor<T>> tensors, const AdamWStep& step) {
  const int64_t chunks = number_chunks(tensors.data(), tensors.cols());
  OF_RUN(
      queue, adamw,
      AdamW<T>{.tensors = tensors.data(), .count = tensors.cols(), .chunks = chunks, .step = step});
  finish(queue);
}
template <class T>
void sgd(const Queue& queue, Buffer<OptimizedTensor<T>> tensors, const SgdStep& step) {
  const int64_t chunks = number_chunks(tensors.data(), tensors.cols());
  OF_RUN(
      queue, sgd,
      Sgd<T>{.tensors = tensors.data(), .count = tensors.cols(), .chunks = chunks, .step = step});
  finish(queue);
}

template <class T>
class Optimizer : public testing::Test {
 protected:
  static double budget(double p, double learning_rate) {
    return kSteps * std::max(epsilon<T>, 0x1p-50) * (2 * std::abs(p) + 8 * 7.3 * learning_rate);
  }
};
using Types = testing::Types<double, float>;
TYPED_TEST_SUITE(Optimizer, Types);

TYPED_TEST(Optimizer, AdamWFollowsItsEquations) {
  using T = TypeParam;
  for_each_device<T>([](const Queue& queue) {
    Group<T> group, again;
    std::vector<std::vector<double>> p, m, v;
    for (size_t k = 0; k < size_t(kTensors); ++k) {
      p.push_back(group.p[k].to_double());
      m.push_back(group.m[k].to_double());
      v.push_back(group.v[k].to_double());
    }
    Numbers numbers(1e-2, 0.3);
    for (int64_t t = 1; t <= kSteps; ++t) {
      numbers.step(0, 0) = t;
      for (auto* one : {&group, &again}) {
        one->draw_gradients(int(t));
        adamw(queue, one->tensors(), numbers.adamw());
      }
      for (size_t k = 0; k < size_t(kTensors); ++k)
        for (size_t i = 0; i < p[k].size(); ++i)
          reference::adamw(p[k][i], double(group.g[k](0, int64_t(i))), m[k][i], v[k][i], kDecays[k],
                           numbers.adamw());
    }
    for (size_t k = 0; k < size_t(kTensors); ++k) {
      SCOPED_TRACE(testing::Message() << "tensor " << k);
      EXPECT_TRUE(close(group.p[k], p[k], [&](int64_t, int64_t i) -> double {
        return TestFixture::budget(p[k][size_t(i)], numbers.values(0, 0));
      }));
      const double eps = std::max(epsilon<T>, 0x1p-50);
      EXPECT_TRUE(close(group.m[k], m[k], Budget{8 * eps, 8 * eps * 1e-2}));
      EXPECT_TRUE(close(group.v[k], v[k], Budget{16 * eps, 0}));
      EXPECT_TRUE(identical(group.p[k], again.p[k]));
      EXPECT_TRUE(group.g[k].verify());
    }
  });
}

TYPED_TEST(Optimizer, SgdFollowsItsEquations) {
  using T = TypeParam;
  for_each_device<T>([](const Queue& queue) {
    Group<T> group;
    std::vector<std::vector<double>> p, m;
    for (size_t k = 0; k < size_t(kTensors); ++k) {
      p.push_back(group.p[k].to_double());
      m.push_back(group.m[k].to_double());
    }
    const Numbers numbers(0.1, 2);
    Buffer<OptimizedTensor<T>> tensors = group.tensors();
    for (int k = 0; k < kTensors; ++k) tensors(0, k).v = nullptr;
    for (int t = 1; t <= kSteps; ++t) {
      group.draw_gradients(t);
      sgd(queue, tensors, numbers.sgd());
      for (size_t k = 0; k < size_t(kTensors); ++k)
        for (size_t i = 0; i < p[k].size(); ++i)
          reference::sgd(p[k][i], double(group.g[k](0, int64_t(i))), m[k][i], kDecays[k],
                         numbers.sgd());
    }
    for (size_t k = 0; k < size_t(kTensors); ++k) {
      SCOPED_TRACE(testing::Message() << "tensor " << k);
      EXPECT_TRUE(close(group.p[k], p[k], [&](int64_t, int64_t i) -> double {
        return TestFixture::budget(p[k][size_t(i)], numbers.values(0, 0));
      }));
    }
  });
}

TYPED_TEST(Optimizer, ZeroesGradientsIfAsked) {
  using T = TypeParam;
  for_each_device<T>([](const Queue& queue) {
    const Numbers numbers(0.1, 1);
    for (bool use_adamw : {true, false}) {
      Group<T> kept, zeroed;
      for (auto* one : {&kept, &zeroed}) {
        AdamWStep a = numbers.adamw();
        SgdStep s = numbers.sgd();
        a.zero_gradients = s.zero_gradients = one == &zeroed;
        if (use_adamw)
          adamw(queue, one->tensors(), a);
        else
          sgd(queue, one->tensors(), s);
      }
      Group<T> before;
      for (size_t k = 0; k < size_t(kTensors); ++k) {
        EXPECT_TRUE(identical(kept.g[k], before.g[k]));
        EXPECT_TRUE(identical(kept.p[k], zeroed.p[k]));
        EXPECT_TRUE(close(zeroed.g[k], std::vector<double>(size_t(kSizes[k])), Budget{}));
      }
    }
  });
}

TYPED_TEST(Optimizer, AScaleThatIsNotFiniteChangesNothing) {
  using T = TypeParam;
  for_each_device<T>([](const Queue& queue) {
    for (double scale : {double(NAN), double(INFINITY)}) {
      Group<T> group;
      const Numbers numbers(0.1, scale);
      AdamWStep step = numbers.adamw();
      step.zero_gradients = true;
      adamw(queue, group.tensors(), step);
      sgd(queue, group.tensors(), numbers.sgd());
      Group<T> before;
      for (size_t k = 0; k < size_t(kTensors); ++k) {
        EXPECT_TRUE(identical(group.p[k], before.p[k]));
        EXPECT_TRUE(identical(group.g[k], before.g[k]));
        EXPECT_TRUE(identical(group.m[k], before.m[k]));
      }
    }
  });
}

// A column of an array of structures, say: no address is one of 16 bytes.
TYPED_TEST(Optimizer, AnyAlignmentGivesTheSameBits) {
  using T = TypeParam;
  constexpr int64_t kSize = 37;
  for_each_device<T>([](const Queue& queue) {
    const Numbers numbers(0.1, 1);
    Buffer<T> whole(4, kSize), shifted(4, kSize + 1);
    fill_normal(whole, 1, 1, 0.1);
    shifted.fill(T(5));
    for (int64_t i = 0; i < 4; ++i)
      for (int64_t j = 0; j < kSize; ++j) shifted(i, j + 1) = whole(i, j);
    const auto list = [](Buffer<T>& b, int64_t offset) {
      Buffer<OptimizedTensor<T>> one(1, 1);
      T* rows[4];
      for (int64_t i = 0; i < 4; ++i) rows[i] = &b(i, offset);
      one(0, 0) = {rows[0], rows[1], rows[2], rows[3], kSize, 0.1};
      return one;
    };
    adamw(queue, list(whole, 0), numbers.adamw());
    adamw(queue, list(shifted, 1), numbers.adamw());
    for (int64_t i = 0; i < 4; ++i) {
      EXPECT_EQ(shifted(i, 0), T(5));
      for (int64_t j = 0; j < kSize; ++j) ASSERT_EQ(shifted(i, j + 1), whole(i, j));
    }
  });
}

// From zero moments the bias corrections cancel: the first step is lr * g / (|g| + eps).
TEST(AdamW, FirstStepHasTheSizeOfTheLearningRate) {
  double p[] = {1, 1, 1}, g[] = {1e-3, -5, 0}, m[3] = {}, v[3] = {};
  const OptimizedTensor<double> tensor{p, g, m, v, 3, 0};
  const Numbers numbers(0.1, 1);
  cpu::adamw(AdamW<double>{.tensors = &tensor, .count = 1, .chunks = 1, .step = numbers.adamw()});
  EXPECT_NEAR(p[0], 1 - 0.1 * 1e-3 / (1e-3 + 1e-8), 1e-12);
  EXPECT_NEAR(p[1], 1.1, 1e-9);
  EXPECT_EQ(p[2], 1);
}

// At step t of gradient 1 the moments are 1 - beta^t, and every step is lr: the corrections undo
// them, from the first step to one where beta2^t has underflowed.
TYPED_TEST(Optimizer, BiasCorrectionsHoldAtAnyStep) {
  using T = TypeParam;
  for_each_device<T>([](const Queue& queue) {
    for (const int64_t t :
         {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{1000}, int64_t{12345}, int64_t{1} << 40}) {
      SCOPED_TRACE(t);
      Buffer<T> all(4, 1);  // p, g, m, v
      Numbers numbers(0.1, 1);
      numbers.step(0, 0) = t;
      all(0, 0) = T(0), all(1, 0) = T(1);
      all(2, 0) = T(-std::expm1(double(t - 1) * std::log(0.9)));
      all(3, 0) = T(-std::expm1(double(t - 1) * std::log(0.999)));
      Buffer<OptimizedTensor<T>> one(1, 1);
      one(0, 0) = {&all(0, 0), &all(1, 0), &all(2, 0), &all(3, 0), 1, 0};
      adamw(queue, one, numbers.adamw());
      // The stored v errs by eps/2 of itself, 1 - beta2 in float by as much of its last digits.
      EXPECT_NEAR(double(all(0, 0)), -0.1, 0.1 * (2e-8 + 16 * epsilon<T>));
    }
  });
}

// A decay below float's resolution of 1 - decay still acts: 1000 steps of 1e-5 take off 1 %.
TEST(AdamW, SmallDecayIsNotRoundedAway) {
  float p = 1.0f, g = 0, m = 0, v = 0;
  const OptimizedTensor<float> tensor{&p, &g, &m, &v, 1, 0.01};
  Numbers numbers(1e-3, 1);
  for (int64_t t = 1; t <= 1000; ++t) {
    numbers.step(0, 0) = t;
    cpu::adamw(AdamW<float>{.tensors = &tensor, .count = 1, .chunks = 1, .step = numbers.adamw()});
  }
  EXPECT_NEAR(p, std::pow(1 - 1e-5, 1000), 5e-5);
}

}  // namespace
}  // namespace orthofed::test
