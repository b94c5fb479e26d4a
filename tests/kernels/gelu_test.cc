#include "kernels/gelu/gelu.h"

#include <algorithm>
#include <cmath>

#include "tests/kernels/gelu_reference.h"
#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/gradcheck.h"
#include "tests/support/random.h"

namespace orthofed::test {
namespace {

constexpr GeluKind kKinds[] = {GeluKind::erf, GeluKind::tanh, GeluKind::quick};

struct Shape {
  int64_t rows, cols, padding;
};
// Pitches that 16-byte packs can use and others; rows that end within a pack.
constexpr Shape kShapes[] = {{0, 4, 0},  {1, 1, 0},  {2, 15, 1},  {1, 16, 0},  {3, 17, 2},
                             {9, 13, 3}, {7, 21, 3}, {33, 96, 8}, {3, 1032, 0}};

template <class T>
class Gelu : public testing::Test {
 protected:
  // gelu.h's budget: the polynomial's error scaled by |x|, and one rounding to T.
  static double budget(double x, double want) {
    return 4 * std::max(epsilon<Accum<T>>, 0x1p-50) * std::abs(x) +
           0.505 * epsilon<T> * std::abs(want);
  }
};
using Types = testing::Types<double, float, bf16>;
TYPED_TEST_SUITE(Gelu, Types);

TYPED_TEST(Gelu, ForwardAndInPlace) {
  for_each_device<TypeParam>([](const Queue& queue) {
    for (GeluKind kind : kKinds) {
      for (const Shape s : kShapes) {
        SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols << " kind " << int(kind));
        Buffer<TypeParam> x(s.rows, s.cols, s.padding), y(s.rows, s.cols, s.padding + 1);
        fill_normal(x, 1, 0, 3);
        std::vector<double> want = x.to_double();
        for (double& v : want) v = reference::gelu(v, kind);
        OF_RUN(queue, gelu_forward,
               GeluForward<TypeParam>{.x = x.data(),
                                      .ldx = x.ld(),
                                      .y = y.data(),
                                      .ldy = y.ld(),
                                      .rows = s.rows,
                                      .cols = s.cols,
                                      .kind = kind});
        finish(queue);
        EXPECT_TRUE(close(y, want, [&](int64_t i, int64_t j) -> double {
          return TestFixture::budget(double(x(i, j)), want[size_t(i * s.cols + j)]);
        }));
        OF_RUN(queue, gelu_forward,
               GeluForward<TypeParam>{.x = x.data(),
                                      .ldx = x.ld(),
                                      .y = x.data(),
                                      .ldy = x.ld(),
                                      .rows = s.rows,
                                      .cols = s.cols,
                                      .kind = kind});
        finish(queue);
        EXPECT_TRUE(identical(x, y));
        EXPECT_TRUE(x.verify());
      }
    }
  });
}

TYPED_TEST(Gelu, BackwardAndInPlace) {
  for_each_device<TypeParam>([](const Queue& queue) {
    for (GeluKind kind : kKinds) {
      for (const Shape s : kShapes) {
        SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols << " kind " << int(kind));
        Buffer<TypeParam> x(s.rows, s.cols, s.padding), dy(s.rows, s.cols, 2), dx(s.rows, s.cols);
        fill_normal(x, 1, 0, 3);
        fill_normal(dy, 2);
        std::vector<double> want = x.to_double();
        for (int64_t i = 0; i < s.rows; ++i)
          for (int64_t j = 0; j < s.cols; ++j)
            want[size_t(i * s.cols + j)] =
                double(dy(i, j)) * reference::gelu_derivative(x(i, j), kind);
        OF_RUN(queue, gelu_backward,
               GeluBackward<TypeParam>{.dy = dy.data(),
                                       .lddy = dy.ld(),
                                       .x = x.data(),
                                       .ldx = x.ld(),
                                       .dx = dx.data(),
                                       .lddx = dx.ld(),
                                       .rows = s.rows,
                                       .cols = s.cols,
                                       .kind = kind});
        finish(queue);
        EXPECT_TRUE(close(dx, want, [&](int64_t i, int64_t j) -> double {
          const double size = std::abs(double(dy(i, j))) * (1 + std::abs(double(x(i, j))));
          return TestFixture::budget(size, want[size_t(i * s.cols + j)]);
        }));
        OF_RUN(queue, gelu_backward,
               GeluBackward<TypeParam>{.dy = dy.data(),
                                       .lddy = dy.ld(),
                                       .x = x.data(),
                                       .ldx = x.ld(),
                                       .dx = dy.data(),
                                       .lddx = dy.ld(),
                                       .rows = s.rows,
                                       .cols = s.cols,
                                       .kind = kind});
        finish(queue);
        EXPECT_TRUE(identical(dx, dy));
        EXPECT_TRUE(dy.verify());
      }
    }
  });
}

TEST(GeluGradient, AgreesWithFiniteDifferences) {
  for (GeluKind kind : kKinds) {
    Buffer<double> x(2, 9), y(2, 9), weight(2, 9), dx(2, 9);
    fill_normal(x, 1, 0, 2);
    fill_normal(weight, 2);
    cpu::gelu_backward(GeluBackward<double>{.dy = weight.data(),
                                            .lddy = 9,
                                            .x = x.data(),
                                            .ldx = 9,
                                            .dx = dx.data(),
                                            .lddx = 9,
                                            .rows = 2,
                                            .cols = 9,
                                            .kind = kind});
    const auto loss = [&] {
      cpu::gelu_forward(GeluForward<double>{
          .x = x.data(), .ldx = 9, .y = y.data(), .ldy = 9, .rows = 2, .cols = 9, .kind = kind});
      return weighted_sum(y, weight);
    };
    EXPECT_TRUE(check_gradient(loss, x, dx));
  }
}

// 0 and the far tails are exact, and NaN is not hidden by a clamp.
TEST(GeluForward, Extremes) {
  for_each_device<float>([](const Queue& queue) {
    for (GeluKind kind : kKinds) {
      Buffer<float> x(1, 5);
      const float values[] = {0.0f, 50.0f, -50.0f, NAN, INFINITY};
      std::copy(std::begin(values), std::end(values), x.data());
      OF_RUN(queue, gelu_forward,
             GeluForward<float>{.x = x.data(),
                                .ldx = 5,
                                .y = x.data(),
                                .ldy = 5,
                                .rows = 1,
                                .cols = 5,
                                .kind = kind});
      finish(queue);
      EXPECT_EQ(x(0, 0), 0.0f);
      EXPECT_EQ(x(0, 1), 50.0f);
      EXPECT_EQ(x(0, 2), 0.0f);
      EXPECT_TRUE(std::isnan(x(0, 3)));
      EXPECT_EQ(x(0, 4), INFINITY);
    }
  });
}

}  // namespace
}  // namespace orthofed::test
