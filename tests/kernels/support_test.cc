// The checkers themselves: each must fail on the fault it exists to find.
#include <cmath>
#include <limits>

#include "tests/support/buffer.h"
#include "tests/support/compare.h"
#include "tests/support/gradcheck.h"
#include "tests/support/isa.h"
#include "tests/support/random.h"

namespace orthofed::test {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

TEST(Buffer, StartsAsNanAndCopiesByValue) {
  Buffer<bf16> a(3, 5, 2);
  EXPECT_TRUE(std::isnan(float(a(2, 4))));
  a.fill(1);
  Buffer<bf16> b = a;
  b(0, 0) = 2;
  EXPECT_EQ(float(a(0, 0)), 1);
  EXPECT_EQ(b.ld(), 7);
}

TEST(Buffer, VerifySeesEveryWriteOutside) {
  Buffer<float> fresh(3, 5, 2);
  fresh.fill(0);
  EXPECT_TRUE(fresh.verify());
  for (int64_t element : {-1, 5, 6, 13, 3 * 7 - 1, 3 * 7, 3 * 7 + 15}) {
    Buffer<float> a = fresh;
    a.data()[element] = 0;
    EXPECT_FALSE(a.verify()) << element;
  }
  Buffer<double> empty(0, 4);
  EXPECT_TRUE(empty.verify());
  empty.data()[0] = 0;
  EXPECT_FALSE(empty.verify());
}

TEST(Close, FailsOnOneWrongElement) {
  Buffer<float> a(2, 3);
  a.fill(1);
  std::vector<double> want(6, 1.0);
  EXPECT_TRUE(close(a, want, Budget{}));
  a(1, 2) = 1.001f;
  EXPECT_FALSE(close(a, want, Budget{1e-4, 1e-4}));
  EXPECT_TRUE(close(a, want, Budget{1e-3, 1e-4}));
}

TEST(Close, NanNeverPasses) {
  Buffer<double> a(1, 2);
  a.fill(0);
  EXPECT_FALSE(close(a, {0, kNan}, Budget{1, 1}));
  a(0, 1) = kNan;
  EXPECT_FALSE(close(a, {0, 0}, Budget{1, 1}));
  EXPECT_FALSE(close(a, {0, kNan}, Budget{1, 1}));
  EXPECT_FALSE(close(a, {0, 0}, [](int64_t, int64_t) { return kNan; }));
}

TEST(Close, InfinityMatchesOnlyItself) {
  const double inf = std::numeric_limits<double>::infinity();
  Buffer<double> a(1, 1);
  a.fill(inf);
  EXPECT_TRUE(close(a, {inf}, Budget{}));
  EXPECT_FALSE(close(a, {-inf}, Budget{0, 1}));
  EXPECT_FALSE(close(a, {1}, Budget{0, 1}));
}

TEST(Close, FailsOnShapeAndOnPadding) {
  Buffer<float> a(1, 2, 1);
  a.fill(0);
  EXPECT_FALSE(close(a, {0, 0, 0}, Budget{0, 1}));
  a.data()[2] = 0;
  EXPECT_FALSE(close(a, {0, 0}, Budget{0, 1}));
}

TEST(Identical, TellsMinusZeroFromZero) {
  Buffer<float> a(1, 1), b(1, 1);
  a.fill(0.0f);
  b.fill(-0.0f);
  EXPECT_TRUE(identical(a, a));
  EXPECT_FALSE(identical(a, b));
}

TEST(Gradient, FindsAWrongOne) {
  Buffer<double> x(2, 3, 1), gradient(2, 3);
  fill_normal(x, 1);
  const auto loss = [&] {
    double sum = 0;
    for (double v : x.to_double()) sum += v * v * v;
    return sum;
  };
  for (int64_t i = 0; i < 2; ++i)
    for (int64_t j = 0; j < 3; ++j) gradient(i, j) = 3 * x(i, j) * x(i, j);
  EXPECT_TRUE(check_gradient(loss, x, gradient));
  gradient(1, 1) *= 1 + 1e-3;
  gradient(1, 1) += 1e-4;
  EXPECT_FALSE(check_gradient(loss, x, gradient));
}

TEST(Random, DependsOnStreamAndPositionAlone) {
  Buffer<double> a(4, 5), b(4, 5, 3), c(4, 5);
  fill_uniform(a, 1, -1, 1);
  fill_uniform(b, 1, -1, 1);
  fill_uniform(c, 2, -1, 1);
  EXPECT_TRUE(identical(a, b));
  EXPECT_FALSE(identical(a, c));
}

TEST(ForEachIsa, ForcesEachLevelAndRestores) {
  const cpu::Isa before = cpu::isa();
  std::vector<cpu::Isa> seen;
  for_each_isa([&] { seen.push_back(cpu::isa()); });
  EXPECT_EQ(seen, available_isas());
  EXPECT_EQ(seen.back(), cpu::best_isa());
  EXPECT_EQ(cpu::isa(), before);
}

}  // namespace
}  // namespace orthofed::test
