#include "kernels/grad_norm/grad_norm.h"

#include <cmath>
#include <limits>
#include <vector>

#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/random.h"

namespace orthofed::test {
namespace {

// Sizes around one chunk, and one with more than the 64 chunks that the CPU holds at a time.
constexpr int64_t kSizes[] = {0, 1, 15, 17, kChunk - 1, 0, kChunk, kChunk + 1, 70 * kChunk + 3};

struct Result {
  double norm, factor;
};

template <class T>
class GradNorm : public testing::Test {
 protected:
  GradNorm() {
    for (int64_t size : kSizes) {
      gradients.emplace_back(1, size);
      fill_normal(gradients.back(), uint64_t(size), 0.1, 1e-3);
    }
  }
  Result run(const Queue& queue, double scale = 1, double max_norm = 0) const {
    Buffer<GradientSpan<T>> spans(1, int64_t(gradients.size()));
    for (size_t k = 0; k < gradients.size(); ++k)
      spans(0, int64_t(k)) = {gradients[k].data(), gradients[k].cols()};
    const int64_t chunks = number_chunks(spans.data(), spans.cols());
    return run(queue, spans, chunks, scale, max_norm);
  }
  static Result run(const Queue& queue, const Buffer<GradientSpan<T>>& spans, int64_t chunks,
                    double scale, double max_norm) {
    Buffer<double> given(1, 1), norm(1, 1), factor(1, 1);
    given(0, 0) = scale;
    const WithScratch at(queue, gpu::grad_norm_scratch(chunks));
    OF_RUN(at, grad_norm,
           orthofed::GradNorm<T>{.gradients = spans.data(),
                                 .count = spans.cols(),
                                 .chunks = chunks,
                                 .scale = given.data(),
                                 .max_norm = max_norm,
                                 .norm = norm.data(),
                                 .factor = factor.data()});
    finish(at);
    EXPECT_TRUE(norm.verify());
    EXPECT_TRUE(factor.verify());
    return {norm(0, 0), factor(0, 0)};
  }
  std::vector<Buffer<T>> gradients;
};
using Types = testing::Types<double, float>;
TYPED_TEST_SUITE(GradNorm, Types);

TYPED_TEST(GradNorm, IsTheRootOfTheSumOfSquares) {
  long double sum = 0;
  int64_t chunks = 0;
  for (const auto& g : this->gradients) {
    for (int64_t i = 0; i < g.cols(); ++i) sum += static_cast<long double>(g(0, i)) * g(0, i);
    chunks += (g.cols() + kChunk - 1) / kChunk;
  }
  const double want = double(std::sqrt(sum)), budget = 0x1p-53 * (double(chunks) / 2 + 135) * want;
  const int threads = cpu::threads();
  for_each_device<TypeParam>([&](const Queue& queue) {
    cpu::set_threads(2);
    const double got = this->run(queue).norm;
    EXPECT_TRUE(std::abs(got - want) <= budget) << got << " " << want;
    cpu::set_threads(1);
    EXPECT_EQ(got, this->run(queue).norm) << "depends on the run or the number of threads";
  });
  cpu::set_threads(threads);
}

TYPED_TEST(GradNorm, TheFactorClips) {
  this->gradients.erase(this->gradients.begin() + 5, this->gradients.end());
  const double norm = this->run(Queue{}).norm;
  for_each_device<TypeParam>([&](const Queue& queue) {
    const auto near = [](double got, double want) { return std::abs(got - want) <= 1e-13 * want; };
    for (double scale : {1.0, 0.25}) {
      SCOPED_TRACE(scale);
      const Result off = this->run(queue, scale, 0), loose = this->run(queue, scale, 2 * norm),
                   tight = this->run(queue, scale, norm / 10);
      EXPECT_TRUE(near(off.norm, scale * norm));
      EXPECT_EQ(off.factor, scale);
      EXPECT_EQ(loose.factor, scale);
      EXPECT_TRUE(near(tight.factor, scale * (norm / 10) / (scale * norm + 1e-6)));
    }
  });
}

TYPED_TEST(GradNorm, NothingHasNormZero) {
  for_each_device<TypeParam>([&](const Queue& queue) {
    const Buffer<GradientSpan<TypeParam>> none(1, 0);
    const Result r = this->run(queue, none, 0, 0.5, 1);
    EXPECT_EQ(r.norm, 0);
    EXPECT_EQ(r.factor, 0.5);
  });
}

TYPED_TEST(GradNorm, LetsNanAndInfinityThrough) {
  using Limits = std::numeric_limits<TypeParam>;
  this->gradients.erase(this->gradients.begin() + 8, this->gradients.end());
  Buffer<TypeParam>& last = this->gradients.back();
  for_each_device<TypeParam>([&](const Queue& queue) {
    const TypeParam kept = last(0, kChunk);
    last(0, kChunk) = Limits::infinity();
    const Result infinite = this->run(queue, 1, 1);
    EXPECT_EQ(infinite.norm, std::numeric_limits<double>::infinity());
    EXPECT_TRUE(std::isnan(infinite.factor));
    last(0, kChunk) = Limits::quiet_NaN();
    const Result nan = this->run(queue, 1, 1);
    EXPECT_TRUE(std::isnan(nan.norm));
    EXPECT_TRUE(std::isnan(nan.factor));
    last(0, kChunk) = kept;
  });
}

// The squares of these do not fit a float; nor is their address one of 16 bytes.
TYPED_TEST(GradNorm, DoesNotOverflow) {
  Buffer<TypeParam> g(1, 3);
  g(0, 1) = TypeParam(3e30), g(0, 2) = TypeParam(4e30);
  Buffer<GradientSpan<TypeParam>> span(1, 1);
  span(0, 0) = {g.data() + 1, 2};
  for_each_device<TypeParam>([&](const Queue& queue) {
    EXPECT_NEAR(this->run(queue, span, number_chunks(span.data(), 1), 1, 0).norm / 5e30, 1, 1e-6);
  });
}

}  // namespace
}  // namespace orthofed::test
