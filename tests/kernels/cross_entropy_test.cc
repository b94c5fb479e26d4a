#include "kernels/cross_entropy/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/check.h"
#include "tests/kernels/cross_entropy_reference.h"
#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/gradcheck.h"
#include "tests/support/random.h"

namespace orthofed::test {
namespace {

struct Shape {
  int64_t batch, classes, padding;
};
constexpr Shape kShapes[] = {{0, 3, 0},  {1, 1, 0},  {1, 2, 1},    {7, 5, 3},
                             {3, 16, 0}, {4, 17, 2}, {33, 197, 1}, {2, 1000, 0}};

template <class T>
struct Case {
  explicit Case(Shape s, double deviation = 2)
      : logits(s.batch, s.classes, s.padding),
        weights(1, s.batch),
        class_weights(1, s.classes),
        prior(1, s.classes),
        losses(1, s.batch),
        dlogits(s.batch, s.classes, s.padding + 1),
        labels(1, s.batch) {
    fill_normal(logits, 1, 0, deviation);
    fill_uniform(weights, 2, 0.5, 2);
    fill_uniform(class_weights, 3, 0.5, 10);
    fill_uniform(prior, 4, -3, 0);
    for (int64_t b = 0; b < s.batch; ++b) labels(0, b) = int32_t((5 * b + 1) % s.classes);
  }
  orthofed::CrossEntropy<T> arguments(Buffer<T>& loss) {
    return {.logits = logits.data(),
            .ld = logits.ld(),
            .labels = labels.data(),
            .weights = weights.data(),
            .class_weights = weighted ? class_weights.data() : nullptr,
            .prior = adjusted ? prior.data() : nullptr,
            .loss = loss.data(),
            .losses = losses.data(),
            .dlogits = dlogits.data(),
            .ldd = dlogits.ld(),
            .batch = logits.rows(),
            .classes = logits.cols(),
            .options = options};
  }
  T run(const Queue& queue = {}) {
    Buffer<T> loss(1, 1);
    const WithScratch at(queue, gpu::cross_entropy_scratch(logits.rows()));
    OF_RUN(at, cross_entropy, arguments(loss));
    finish(at);
    EXPECT_TRUE(loss.verify());
    return loss(0, 0);
  }
  Buffer<T> logits, weights, class_weights, prior, losses, dlogits;
  Buffer<int32_t> labels;
  bool weighted = false, adjusted = false;
  CrossEntropyOptions options;
};

struct Reference {
  template <class T>
  explicit Reference(const Case<T>& c) {
    const int64_t batch = c.logits.rows();
    double total = 0;
    for (int64_t b = 0; b < batch; ++b) {
      const auto sample = reference::cross_entropy_sample(
          c.logits.cols(), c.labels(0, b), c.options, [&](int64_t j) {
            return double(c.logits(b, j)) + (c.adjusted ? double(c.prior(0, j)) : 0);
          });
      weight.push_back(double(c.weights(0, b)) *
                       (c.weighted ? double(c.class_weights(0, c.labels(0, b))) : 1));
      total += weight.back();
      mean += weight.back() * sample.loss;
      losses.push_back(sample.loss);
      for (const double v : sample.gradient) dlogits.push_back(weight.back() * v);
    }
    if (batch == 0) return;
    mean /= total;
    for (double& v : dlogits) v /= total;
    for (double& v : weight) v /= total;
  }
  double mean = 0;
  std::vector<double> losses, weight;  // [batch]
  std::vector<double> dlogits;         // [batch, classes]
};

template <class T>
class CrossEntropy : public testing::Test {};
using Types = testing::Types<double, float>;
TYPED_TEST_SUITE(CrossEntropy, Types);

TYPED_TEST(CrossEntropy, LossAndGradient) {
  using T = TypeParam;
  for_each_device<T>([](const Queue& queue) {
    for (const Shape s : kShapes) {
      for (double smoothing : {0.0, 0.1}) {
        for (double focal : {0.0, 1.0, 2.0}) {
          for (bool extras : {false, true}) {
            SCOPED_TRACE(testing::Message() << s.batch << " x " << s.classes << " smoothing "
                                            << smoothing << " focal " << focal << " " << extras);
            Case<T> c(s), again(s);
            c.options = again.options = {smoothing, focal};
            c.weighted = c.adjusted = again.weighted = again.adjusted = extras;
            const T loss = c.run(queue);
            const Reference want(c);
            // log q errs by the roundings of z (below 16) and of the sum; the focal factor and its
            // slope multiply that by at most a few.
            const double unit =
                std::max(epsilon<T>, 0x1p-48) * (double(s.classes) / 16 + 40) * (1 + focal) * 4;
            EXPECT_TRUE(std::abs(double(loss) - want.mean) <= unit) << loss << " " << want.mean;
            EXPECT_TRUE(close(c.losses, want.losses, Budget{unit, unit}));
            EXPECT_TRUE(close(c.dlogits, want.dlogits, [&](int64_t b, int64_t) -> double {
              return unit * want.weight[size_t(b)];
            }));
            if (!extras) continue;
            EXPECT_EQ(again.run(queue), loss);
            EXPECT_TRUE(identical(c.dlogits, again.dlogits));
          }
        }
      }
    }
  });
}

TEST(CrossEntropyGradient, AgreesWithFiniteDifferences) {
  for (double smoothing : {0.0, 0.1}) {
    for (double focal : {0.0, 0.5, 2.0}) {
      Case<double> c({4, 6, 1}, 1);
      c.options = {smoothing, focal};
      c.weighted = c.adjusted = true;
      c.run();
      const Buffer<double> gradient = c.dlogits;
      EXPECT_TRUE(check_gradient([&] { return c.run(); }, c.logits, gradient))
          << smoothing << " " << focal;
    }
  }
}

// The padding of a partial batch: whatever it holds, it changes nothing and gets gradient 0.
TYPED_TEST(CrossEntropy, WeightZeroContributesNothing) {
  using T = TypeParam;
  for_each_device<T>([](const Queue& queue) {
    Case<T> whole({5, 7, 0}), padded({8, 7, 0});
    whole.weighted = padded.weighted = true;
    for (int64_t b = 0; b < 8; ++b) {
      for (int64_t j = 0; j < 7; ++j) padded.logits(b, j) = b < 5 ? whole.logits(b, j) : T(NAN);
      padded.labels(0, b) = b < 5 ? whole.labels(0, b) : -1;
      padded.weights(0, b) = b < 5 ? whole.weights(0, b) : T(0);
    }
    EXPECT_EQ(whole.run(queue), padded.run(queue));
    for (int64_t b = 0; b < 8; ++b) {
      EXPECT_EQ(padded.losses(0, b), b < 5 ? whole.losses(0, b) : T(0));
      for (int64_t j = 0; j < 7; ++j)
        EXPECT_EQ(padded.dlogits(b, j), b < 5 ? whole.dlogits(b, j) : T(0));
    }
    padded.weights.fill(0);
    EXPECT_EQ(padded.run(queue), T(0));
    EXPECT_TRUE(close(padded.dlogits, std::vector<double>(8 * 7), Budget{}));
  });
}

// logit_adjust gives a class that a site has never seen a prior of log 0.
TYPED_TEST(CrossEntropy, PriorMayBeMinusInfinity) {
  using T = TypeParam;
  for_each_device<T>([](const Queue& queue) {
    for (double focal : {0.0, 2.0}) {
      Case<T> c({3, 5, 0}), without({3, 4, 0});
      c.adjusted = without.adjusted = true;
      c.options.focal = without.options.focal = focal;
      c.prior(0, 4) = -std::numeric_limits<T>::infinity();
      for (int64_t b = 0; b < 3; ++b) {
        c.labels(0, b) = without.labels(0, b) = int32_t(b);
        for (int64_t j = 0; j < 4; ++j) without.logits(b, j) = c.logits(b, j);
      }
      for (int64_t j = 0; j < 4; ++j) without.prior(0, j) = c.prior(0, j);
      EXPECT_NEAR(double(c.run(queue)), double(without.run(queue)), 1e-6);
      for (int64_t b = 0; b < 3; ++b) {
        EXPECT_EQ(c.dlogits(b, 4), T(0));
        for (int64_t j = 0; j < 4; ++j)
          EXPECT_NEAR(double(c.dlogits(b, j)), double(without.dlogits(b, j)), 1e-6);
      }
    }
  });
}

TYPED_TEST(CrossEntropy, LargeLogitsAndCertainty) {
  using T = TypeParam;
  for_each_device<T>([](const Queue& queue) {
    for (double focal : {0.0, 0.5, 2.0}) {
      Case<T> c({2, 3, 0});
      c.options.focal = focal;
      c.weights.fill(1);
      c.labels.fill(1);
      const T values[] = {0, T(1e4), 0, T(1e4), 0, 0};  // certain and right; certain and wrong
      std::copy(std::begin(values), std::end(values), c.logits.data());
      EXPECT_NEAR(double(c.run(queue)), 5e3, 1e-2);
      EXPECT_TRUE(close(c.dlogits, {0, 0, 0, 0.5, -0.5, 0}, Budget{1e-6, 0}));
    }
  });
}

TYPED_TEST(CrossEntropy, OutputsAreOptionalAndTheGradientMayReplaceTheLogits) {
  using T = TypeParam;
  for_each_device<T>([](const Queue& queue) {
    Case<T> c({4, 9, 2});
    const T loss = c.run(queue);
    const WithScratch at(queue, gpu::cross_entropy_scratch(4));
    Buffer<T> alone(1, 1);
    const auto run = [&](T* dlogits, int64_t ldd) {
      auto arguments = c.arguments(alone);
      arguments.losses = nullptr;
      arguments.dlogits = dlogits;
      arguments.ldd = ldd;
      OF_RUN(at, cross_entropy, arguments);
      finish(at);
      EXPECT_EQ(alone(0, 0), loss);
    };
    run(nullptr, 0);
    run(c.logits.data(), c.logits.ld());
    EXPECT_TRUE(identical(c.logits, c.dlogits));
    EXPECT_TRUE(c.logits.verify());
  });
}

// More samples than one turn of all blocks takes.
TEST(CrossEntropyBatch, MayBeLarge) {
  for_each_device<float>([](const Queue& queue) {
    Case<float> c({1027, 1, 0});
    EXPECT_EQ(c.run(queue), 0);
    EXPECT_TRUE(close(c.losses, std::vector<double>(1027), Budget{}));
    EXPECT_TRUE(close(c.dlogits, std::vector<double>(1027), Budget{}));
  });
}

TYPED_TEST(CrossEntropy, RefusesALabelOutsideTheClasses) {
  for (int32_t label : {3, -1}) {
    Case<TypeParam> c({3, 3, 0});
    c.weighted = true;
    c.labels(0, 1) = label;
    c.weights(0, 2) = 0;
    EXPECT_THROW(c.run(), Error);
    if constexpr (gpu_computes<TypeParam>)
      for_each_gpu([&](const Queue& queue) {
        EXPECT_TRUE(std::isnan(c.run(queue)));
        EXPECT_TRUE(std::isnan(c.losses(0, 1)));
        for (int64_t j = 0; j < 3; ++j) {
          EXPECT_TRUE(std::isnan(c.dlogits(0, j)));
          EXPECT_TRUE(std::isnan(c.dlogits(1, j)));
          EXPECT_EQ(c.dlogits(2, j), 0);
        }
      });
  }
}

}  // namespace
}  // namespace orthofed::test
