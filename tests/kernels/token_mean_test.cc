#include "kernels/token_mean/token_mean.h"

#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/gradcheck.h"
#include "tests/support/random.h"

namespace orthofed::test {
namespace {

struct Case {
  TokenMeanShape shape;
  int64_t padding;
};
// One token and one column; fewer tokens than warps, and one more than they take at once; columns
// that end within a pack and beyond a block; pitches that packs can use and others.
constexpr Case kCases[] = {{{0, 3, 1, 4}, 0},   {{1, 1, 0, 1}, 0},    {{2, 5, 1, 15}, 1},
                           {{3, 9, 0, 16}, 0},  {{2, 19, 2, 131}, 3}, {{1, 67, 66, 128}, 8},
                           {{2, 33, 5, 260}, 4}};

template <class T>
class TokenMean : public testing::Test {};
using Types = testing::Types<double, float>;
TYPED_TEST_SUITE(TokenMean, Types);

TYPED_TEST(TokenMean, Forward) {
  using T = TypeParam;
  for_each_device<T>([](const Queue& queue) {
    for (const auto& [s, padding] : kCases) {
      SCOPED_TRACE(testing::Message() << s.batch << " x " << s.tokens << " x " << s.dim);
      Buffer<T> x(s.batch * s.tokens, s.dim, padding), y(s.batch, s.dim, padding + 1);
      fill_normal(x, 1);
      const auto n = double(s.tokens - s.first);
      std::vector<double> want, size;  // [batch, dim]: means of x and of |x|
      for (int64_t b = 0; b < s.batch; ++b)
        for (int64_t j = 0; j < s.dim; ++j) {
          double sum = 0, absolute = 0;
          for (int64_t t = s.first; t < s.tokens; ++t) {
            sum += double(x(b * s.tokens + t, j));
            absolute += std::abs(double(x(b * s.tokens + t, j)));
          }
          want.push_back(sum / n);
          size.push_back(absolute / n);
        }
      // What does not count must not be looked at.
      for (int64_t b = 0; b < s.batch; ++b)
        for (int64_t t = 0; t < s.first; ++t)
          for (int64_t j = 0; j < s.dim; ++j) x(b * s.tokens + t, j) = T(NAN);
      const double additions = std::is_same_v<T, double> ? n : n / 8 + 8;
      const auto budget = [&](int64_t b, int64_t j) -> double {
        const auto at = size_t(b * s.dim + j);
        return epsilon<T> / 2 * (additions * size[at] + 2 * std::abs(want[at]));
      };
      OF_RUN(queue, token_mean_forward,
             TokenMeanForward<T>{
                 .x = x.data(), .ldx = x.ld(), .y = y.data(), .ldy = y.ld(), .shape = s});
      finish(queue);
      EXPECT_TRUE(close(y, want, budget));
      EXPECT_TRUE(x.verify());
      Buffer<T> again(s.batch, s.dim);
      OF_RUN(queue, token_mean_forward,
             TokenMeanForward<T>{
                 .x = x.data(), .ldx = x.ld(), .y = again.data(), .ldy = again.ld(), .shape = s});
      finish(queue);
      EXPECT_TRUE(identical(again, y));
    }
  });
}

TYPED_TEST(TokenMean, Backward) {
  using T = TypeParam;
  for_each_device<T>([](const Queue& queue) {
    for (const auto& [s, padding] : kCases) {
      SCOPED_TRACE(testing::Message() << s.batch << " x " << s.tokens << " x " << s.dim);
      Buffer<T> dy(s.batch, s.dim, padding + 1), dx(s.batch * s.tokens, s.dim, padding);
      fill_normal(dy, 2);
      std::vector<double> want;
      for (int64_t i = 0; i < dx.rows(); ++i)
        for (int64_t j = 0; j < s.dim; ++j)
          want.push_back(i % s.tokens < s.first
                             ? 0.0
                             : double(dy(i / s.tokens, j)) / double(s.tokens - s.first));
      OF_RUN(queue, token_mean_backward,
             TokenMeanBackward<T>{
                 .dy = dy.data(), .lddy = dy.ld(), .dx = dx.data(), .lddx = dx.ld(), .shape = s});
      finish(queue);
      EXPECT_TRUE(close(dx, want, Budget{1.01 * epsilon<T>, 0}));
      EXPECT_TRUE(dy.verify());
      Buffer<T> again(dx.rows(), s.dim);
      OF_RUN(queue, token_mean_backward,
             TokenMeanBackward<T>{.dy = dy.data(),
                                  .lddy = dy.ld(),
                                  .dx = again.data(),
                                  .lddx = again.ld(),
                                  .shape = s});
      finish(queue);
      EXPECT_TRUE(identical(again, dx));
    }
  });
}

TYPED_TEST(TokenMean, AMeanOfNothingIsRefused) {
  for_each_device<TypeParam>([](const Queue& queue) {
    Buffer<TypeParam> x(2, 3), y(1, 3);
    EXPECT_THROW(OF_RUN(queue, token_mean_forward,
                        TokenMeanForward<TypeParam>{.x = x.data(),
                                                    .ldx = x.ld(),
                                                    .y = y.data(),
                                                    .ldy = y.ld(),
                                                    .shape = TokenMeanShape{1, 2, 2, 3}}),
                 Error);
  });
}

TEST(TokenMeanGradient, AgreesWithFiniteDifferences) {
  const TokenMeanShape s{2, 4, 1, 3};
  Buffer<double> x(8, 3), y(2, 3), weight(2, 3), dx(8, 3);  // the loss is sum(weight * y)
  fill_normal(x, 1);
  fill_normal(weight, 2);
  cpu::token_mean_backward(TokenMeanBackward<double>{
      .dy = weight.data(), .lddy = 3, .dx = dx.data(), .lddx = 3, .shape = s});
  const auto loss = [&] {
    cpu::token_mean_forward(
        TokenMeanForward<double>{.x = x.data(), .ldx = 3, .y = y.data(), .ldy = 3, .shape = s});
    return weighted_sum(y, weight);
  };
  EXPECT_TRUE(check_gradient(loss, x, dx));
}

}  // namespace
}  // namespace orthofed::test
