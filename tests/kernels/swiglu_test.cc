#include "kernels/swiglu/swiglu.h"

#include <algorithm>
#include <cmath>

#include "tests/kernels/gelu_reference.h"
#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/gradcheck.h"
#include "tests/support/random.h"

namespace orthofed::test {
namespace {

struct Shape {
  int64_t rows, cols, padding;
};
// Pitches that 16-byte packs can use and others; rows that end within a pack.
constexpr Shape kShapes[] = {{0, 4, 0},  {1, 1, 0},  {2, 15, 1},  {1, 16, 0},
                             {9, 13, 3}, {7, 21, 3}, {33, 96, 8}, {3, 520, 0}};

template <class T>
class Swiglu : public testing::Test {
 protected:
  // swiglu.h: the polynomial's error on `size`, and one rounding to T.
  static double budget(double size, double want) {
    return 4 * std::max(epsilon<Accum<T>>, 0x1p-50) * std::abs(size) +
           0.505 * epsilon<T> * std::abs(want);
  }
};
using Types = testing::Types<double, float, bf16>;
TYPED_TEST_SUITE(Swiglu, Types);

TYPED_TEST(Swiglu, Forward) {
  using T = TypeParam;
  for_each_device<T>([](const Queue& queue) {
    for (const Shape s : kShapes) {
      SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols);
      Buffer<T> x(s.rows, 2 * s.cols, s.padding), y(s.rows, s.cols, s.padding + 1),
          again(s.rows, s.cols, s.padding + 1);
      fill_normal(x, 1, 0, 3);
      std::vector<double> want;
      for (int64_t i = 0; i < s.rows; ++i)
        for (int64_t j = 0; j < s.cols; ++j)
          want.push_back(double(x(i, j)) * reference::sigmoid(double(x(i, j))) *
                         double(x(i, s.cols + j)));
      for (Buffer<T>* to : {&y, &again}) {
        OF_RUN(queue, swiglu_forward,
               SwigluForward<T>{.x = x.data(),
                                .ldx = x.ld(),
                                .y = to->data(),
                                .ldy = to->ld(),
                                .rows = s.rows,
                                .cols = s.cols});
        finish(queue);
      }
      EXPECT_TRUE(close(y, want, [&](int64_t i, int64_t j) -> double {
        return TestFixture::budget(double(x(i, j)) * double(x(i, s.cols + j)),
                                   want[size_t(i * s.cols + j)]);
      }));
      EXPECT_TRUE(identical(y, again));
      EXPECT_TRUE(x.verify());
    }
  });
}

TYPED_TEST(Swiglu, BackwardAndInPlace) {
  using T = TypeParam;
  for_each_device<T>([](const Queue& queue) {
    for (const Shape s : kShapes) {
      SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols);
      Buffer<T> x(s.rows, 2 * s.cols, s.padding), dy(s.rows, s.cols, 2),
          dx(s.rows, 2 * s.cols, s.padding);
      fill_normal(x, 1, 0, 3);
      fill_normal(dy, 2);
      std::vector<double> want, size;  // [rows, 2 cols]
      for (int64_t i = 0; i < s.rows; ++i)
        for (int64_t j = 0; j < 2 * s.cols; ++j) {
          const int64_t k = j % s.cols;
          const double g = x(i, k), u = x(i, s.cols + k), d = dy(i, k), p = reference::sigmoid(g);
          want.push_back(j < s.cols ? d * u * p * (1 + g * (1 - p)) : d * g * p);
          size.push_back(j < s.cols ? d * u * (1 + std::abs(g)) : d * g);
        }
      OF_RUN(queue, swiglu_backward,
             SwigluBackward<T>{.dy = dy.data(),
                               .lddy = dy.ld(),
                               .x = x.data(),
                               .ldx = x.ld(),
                               .dx = dx.data(),
                               .lddx = dx.ld(),
                               .rows = s.rows,
                               .cols = s.cols});
      finish(queue);
      EXPECT_TRUE(close(dx, want, [&](int64_t i, int64_t j) -> double {
        const auto at = size_t(i * 2 * s.cols + j);
        return TestFixture::budget(size[at], want[at]);
      }));
      OF_RUN(queue, swiglu_backward,
             SwigluBackward<T>{.dy = dy.data(),
                               .lddy = dy.ld(),
                               .x = x.data(),
                               .ldx = x.ld(),
                               .dx = x.data(),
                               .lddx = x.ld(),
                               .rows = s.rows,
                               .cols = s.cols});
      finish(queue);
      EXPECT_TRUE(identical(dx, x));
      EXPECT_TRUE(dy.verify());
    }
  });
}

TEST(SwigluGradient, AgreesWithFiniteDifferences) {
  Buffer<double> x(2, 18), y(2, 9), weight(2, 9), dx(2, 18);  // the loss is sum(weight * y)
  fill_normal(x, 1);
  fill_normal(weight, 2);
  cpu::swiglu_backward(SwigluBackward<double>{.dy = weight.data(),
                                              .lddy = 9,
                                              .x = x.data(),
                                              .ldx = 18,
                                              .dx = dx.data(),
                                              .lddx = 18,
                                              .rows = 2,
                                              .cols = 9});
  const auto loss = [&] {
    cpu::swiglu_forward(SwigluForward<double>{
        .x = x.data(), .ldx = 18, .y = y.data(), .ldy = 9, .rows = 2, .cols = 9});
    return weighted_sum(y, weight);
  };
  EXPECT_TRUE(check_gradient(loss, x, dx));
}

}  // namespace
}  // namespace orthofed::test
