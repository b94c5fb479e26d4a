#include "kernels/grad_norm/grad_norm.h"

#include <cmath>
#include <limits>
#include <vector>

#include "tests/support/buffer.h"
#include "tests/support/isa.h"
#include "tests/support/random.h"

namespace orthofed::test {
namespace {

template <class T>
class GradNorm : public testing::Test {
 protected:
  // Sizes around one chunk of 16384, and one with more than 64 such chunks.
  GradNorm() {
    for (int64_t size : {0, 1, 15, 16, 17, 16383, 16384, 16385, 1100003}) {
      gradients.emplace_back(1, size);
      fill_normal(gradients.back(), uint64_t(size), 0.1, 1e-3);
    }
  }
  double norm() const {
    std::vector<cpu::GradientSpan<T>> spans;
    for (const Buffer<T>& g : gradients) spans.push_back({g.data(), g.cols()});
    return cpu::grad_norm(spans.data(), int64_t(spans.size()));
  }
  std::vector<Buffer<T>> gradients;
};
using Types = testing::Types<double, float>;
TYPED_TEST_SUITE(GradNorm, Types);

TYPED_TEST(GradNorm, IsTheRootOfTheSumOfSquares) {
  long double sum = 0;
  for (const auto& g : this->gradients)
    for (int64_t i = 0; i < g.cols(); ++i) sum += static_cast<long double>(g(0, i)) * g(0, i);
  const double want = double(std::sqrt(sum));
  const int threads = cpu::threads();
  for_each_isa([&] {
    cpu::set_threads(2);
    const double got = this->norm();
    // 17,000 additions a chunk over 16 lanes, halved by the root.
    EXPECT_TRUE(std::abs(got - want) <= 1100 * 0x1p-53 * want) << got << " " << want;
    cpu::set_threads(1);
    EXPECT_EQ(got, this->norm()) << "depends on the number of threads";
  });
  cpu::set_threads(threads);
}

TYPED_TEST(GradNorm, NothingHasNormZero) {
  EXPECT_EQ(cpu::grad_norm<TypeParam>(nullptr, 0), 0);
}

TYPED_TEST(GradNorm, LetsNanAndInfinityThrough) {
  for_each_isa([&] {
    const TypeParam kept = this->gradients.back()(0, 777777);
    this->gradients.back()(0, 777777) = std::numeric_limits<TypeParam>::infinity();
    EXPECT_EQ(this->norm(), std::numeric_limits<double>::infinity());
    this->gradients.back()(0, 777777) = std::numeric_limits<TypeParam>::quiet_NaN();
    EXPECT_TRUE(std::isnan(this->norm()));
    this->gradients.back()(0, 777777) = kept;
  });
}

// The squares of these do not fit a float.
TEST(GradNormFloat, DoesNotOverflow) {
  const float g[] = {3e30f, 4e30f};
  const cpu::GradientSpan<float> span{g, 2};
  EXPECT_NEAR(cpu::grad_norm(&span, 1) / 5e30, 1, 1e-6);
}

}  // namespace
}  // namespace orthofed::test
