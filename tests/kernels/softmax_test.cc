#include "kernels/softmax/softmax.h"

#include <algorithm>
#include <cmath>

#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/gradcheck.h"
#include "tests/support/random.h"

namespace orthofed::test {
namespace {

struct Shape {
  int64_t rows, cols, padding;
};
// Pitches that 16-byte packs can use and others; rows around the 256, 768 and 1,536 columns that
// warps hold in registers.
constexpr Shape kShapes[] = {{0, 4, 0},    {3, 1, 0},    {2, 15, 1},  {1, 16, 0},  {3, 17, 2},
                             {33, 197, 3}, {5, 256, 0},  {2, 257, 0}, {3, 765, 3}, {2, 1000, 0},
                             {1, 1536, 0}, {1, 1537, 0}, {2, 1541, 3}};

template <class T>
std::vector<double> softmax(const Buffer<T>& x) {
  std::vector<double> y = x.to_double();
  for (int64_t i = 0; i < x.rows(); ++i) {
    const auto row = y.begin() + i * x.cols();
    const double top = *std::max_element(row, row + x.cols());
    double sum = 0;
    for (int64_t j = 0; j < x.cols(); ++j) sum += row[j] = std::exp(row[j] - top);
    for (int64_t j = 0; j < x.cols(); ++j) row[j] /= sum;
  }
  return y;
}

template <class T>
class Softmax : public testing::Test {
 protected:
  static constexpr double kUnit = std::max(epsilon<Accum<T>>, 0x1p-48);
};
using Types = testing::Types<double, float, bf16>;
TYPED_TEST_SUITE(Softmax, Types);

TYPED_TEST(Softmax, ForwardAndInPlace) {
  for_each_device<TypeParam>([](const Queue& queue) {
    for (const Shape s : kShapes) {
      SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols);
      Buffer<TypeParam> x(s.rows, s.cols, s.padding), y(s.rows, s.cols, s.padding + 1);
      fill_normal(x, 1, 0, 4);
      const std::vector<double> want = softmax(x);
      OF_RUN(queue, softmax_forward,
             SoftmaxForward<TypeParam>{.x = x.data(),
                                       .ldx = x.ld(),
                                       .y = y.data(),
                                       .ldy = y.ld(),
                                       .rows = s.rows,
                                       .cols = s.cols});
      finish(queue);
      // x - max rounds once at its own size (up to 40 here); the sum and the exponential add to it.
      EXPECT_TRUE(
          close(y, want,
                Budget{TestFixture::kUnit * (double(s.cols) / 16 + 40) + 0.505 * epsilon<TypeParam>,
                       1e-37}));
      OF_RUN(queue, softmax_forward,
             SoftmaxForward<TypeParam>{.x = x.data(),
                                       .ldx = x.ld(),
                                       .y = x.data(),
                                       .ldy = x.ld(),
                                       .rows = s.rows,
                                       .cols = s.cols});
      finish(queue);
      EXPECT_TRUE(identical(x, y));
      EXPECT_TRUE(x.verify());
    }
  });
}

TYPED_TEST(Softmax, BackwardAndInPlace) {
  for_each_device<TypeParam>([](const Queue& queue) {
    for (const Shape s : kShapes) {
      SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols);
      Buffer<TypeParam> x(s.rows, s.cols), y(s.rows, s.cols, s.padding), dy(s.rows, s.cols, 1),
          dx(s.rows, s.cols, 2);
      fill_normal(x, 1);
      fill_normal(dy, 2);
      OF_RUN(queue, softmax_forward,
             SoftmaxForward<TypeParam>{.x = x.data(),
                                       .ldx = x.ld(),
                                       .y = y.data(),
                                       .ldy = y.ld(),
                                       .rows = s.rows,
                                       .cols = s.cols});
      finish(queue);
      std::vector<double> want, size;
      for (int64_t i = 0; i < s.rows; ++i) {
        double dot = 0, dot_size = 0;
        for (int64_t j = 0; j < s.cols; ++j) {
          dot += double(dy(i, j)) * double(y(i, j));
          dot_size += std::abs(double(dy(i, j)) * double(y(i, j)));
        }
        for (int64_t j = 0; j < s.cols; ++j) {
          want.push_back(double(y(i, j)) * (double(dy(i, j)) - dot));
          size.push_back(double(y(i, j)) * (std::abs(double(dy(i, j))) + dot_size));
        }
      }
      OF_RUN(queue, softmax_backward,
             SoftmaxBackward<TypeParam>{.dy = dy.data(),
                                        .lddy = dy.ld(),
                                        .y = y.data(),
                                        .ldy = y.ld(),
                                        .dx = dx.data(),
                                        .lddx = dx.ld(),
                                        .rows = s.rows,
                                        .cols = s.cols});
      finish(queue);
      EXPECT_TRUE(close(dx, want, [&](int64_t i, int64_t j) -> double {
        const size_t e = size_t(i * s.cols + j);
        return TestFixture::kUnit * (double(s.cols) / 16 + 8) * size[e] +
               0.505 * epsilon<TypeParam> * std::abs(want[e]) + 1e-37;
      }));
      OF_RUN(queue, softmax_backward,
             SoftmaxBackward<TypeParam>{.dy = dy.data(),
                                        .lddy = dy.ld(),
                                        .y = y.data(),
                                        .ldy = y.ld(),
                                        .dx = dy.data(),
                                        .lddx = dy.ld(),
                                        .rows = s.rows,
                                        .cols = s.cols});
      finish(queue);
      EXPECT_TRUE(identical(dx, dy));
      EXPECT_TRUE(dy.verify());
    }
  });
}

TEST(SoftmaxGradient, AgreesWithFiniteDifferences) {
  Buffer<double> x(3, 5), y(3, 5), weight(3, 5), dx(3, 5);
  fill_normal(x, 1);
  fill_normal(weight, 2);
  const auto loss = [&] {
    cpu::softmax_forward(SoftmaxForward<double>{
        .x = x.data(), .ldx = 5, .y = y.data(), .ldy = 5, .rows = 3, .cols = 5});
    return weighted_sum(y, weight);
  };
  loss();
  cpu::softmax_backward(SoftmaxBackward<double>{.dy = weight.data(),
                                                .lddy = 5,
                                                .y = y.data(),
                                                .ldy = 5,
                                                .dx = dx.data(),
                                                .lddx = 5,
                                                .rows = 3,
                                                .cols = 5});
  EXPECT_TRUE(check_gradient(loss, x, dx));
}

// Large logits do not overflow, a masked class has probability 0, NaN spoils its row alone.
TEST(SoftmaxForward, Extremes) {
  for_each_device<float>([](const Queue& queue) {
    Buffer<float> x(3, 3), y(3, 3);
    const float values[] = {1e30f, 1e30f, -1e30f, 0.0f, -INFINITY, 0.0f, 1.0f, NAN, 2.0f};
    std::copy(std::begin(values), std::end(values), x.data());
    OF_RUN(queue, softmax_forward,
           SoftmaxForward<float>{
               .x = x.data(), .ldx = 3, .y = y.data(), .ldy = 3, .rows = 3, .cols = 3});
    finish(queue);
    const float want[] = {0.5f, 0.5f, 0.0f, 0.5f, 0.0f, 0.5f};
    for (int64_t e = 0; e < 6; ++e) EXPECT_EQ(y.data()[e], want[e]);
    for (int64_t j = 0; j < 3; ++j) EXPECT_TRUE(std::isnan(y(2, j)));
  });
}

}  // namespace
}  // namespace orthofed::test
