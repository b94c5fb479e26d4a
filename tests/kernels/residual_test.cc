#include "kernels/residual/residual.h"

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
// Pitches that 16-byte packs can use and others; rows that end within a pack.
constexpr Shape kShapes[] = {{0, 4, 0},  {1, 1, 0},   {2, 31, 1},
                             {9, 33, 3}, {17, 64, 2}, {5, 260, 0}};
// Around the 32 columns and 128 rows of a column sum's blocks.
constexpr Shape kSumShapes[] = {{0, 4, 0},    {1, 1, 0},   {2, 31, 1},
                                {127, 32, 0}, {128, 3, 3}, {259, 33, 3}};

template <class T>
void bias_backward(const Queue& queue, const Buffer<T>& dy, Buffer<Accum<T>>& db, bool accumulate) {
  const WithScratch at(queue, gpu::bias_backward_scratch(dy.rows(), dy.cols()));
  OF_RUN(at, bias_backward,
         BiasBackward<T>{.dy = dy.data(),
                         .lddy = dy.ld(),
                         .db = db.data(),
                         .accumulate = accumulate,
                         .rows = dy.rows(),
                         .cols = dy.cols()});
  finish(at);
}

template <class T>
class Residual : public testing::Test {
 protected:
  static constexpr double kUnit = std::max(epsilon<Accum<T>>, 0x1p-48);
};
using Types = testing::Types<double, float, bf16>;
TYPED_TEST_SUITE(Residual, Types);

TYPED_TEST(Residual, ForwardAndInPlace) {
  using T = TypeParam;
  using A = Accum<T>;
  for_each_device<TypeParam>([](const Queue& queue) {
    for (const Shape s : kShapes) {
      for (bool scaled : {false, true}) {
        SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols << " scaled " << scaled);
        Buffer<A> x(s.rows, s.cols, s.padding), y(s.rows, s.cols, 1), gamma(1, s.cols);
        Buffer<T> z(s.rows, s.cols, s.padding + 1);
        fill_normal(x, 1);
        fill_normal(z, 2);
        fill_normal(gamma, 3);
        std::vector<double> want, size;
        for (int64_t i = 0; i < s.rows; ++i)
          for (int64_t j = 0; j < s.cols; ++j) {
            const double branch = (scaled ? double(gamma(0, j)) : 1) * double(z(i, j));
            want.push_back(double(x(i, j)) + branch);
            size.push_back(std::abs(double(x(i, j))) + 2 * std::abs(branch));
          }
        const A* scale = scaled ? gamma.data() : nullptr;
        OF_RUN(queue, residual_forward,
               ResidualForward<T>{.x = x.data(),
                                  .ldx = x.ld(),
                                  .z = z.data(),
                                  .ldz = z.ld(),
                                  .gamma = scale,
                                  .y = y.data(),
                                  .ldy = y.ld(),
                                  .rows = s.rows,
                                  .cols = s.cols});
        finish(queue);
        EXPECT_TRUE(close(y, want, [&](int64_t i, int64_t j) -> double {
          return TestFixture::kUnit / 2 * size[size_t(i * s.cols + j)] * 1.01;
        }));
        OF_RUN(queue, residual_forward,
               ResidualForward<T>{.x = x.data(),
                                  .ldx = x.ld(),
                                  .z = z.data(),
                                  .ldz = z.ld(),
                                  .gamma = scale,
                                  .y = x.data(),
                                  .ldy = x.ld(),
                                  .rows = s.rows,
                                  .cols = s.cols});
        finish(queue);
        EXPECT_TRUE(identical(x, y));
        EXPECT_TRUE(x.verify());
      }
    }
  });
}

TYPED_TEST(Residual, Backward) {
  using T = TypeParam;
  using A = Accum<T>;
  for_each_device<TypeParam>([](const Queue& queue) {
    for (const Shape s : kShapes) {
      for (bool scaled : {false, true}) {
        SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols << " scaled " << scaled);
        Buffer<A> dy(s.rows, s.cols, s.padding), gamma(1, s.cols);
        Buffer<T> dz(s.rows, s.cols, 3);
        fill_normal(dy, 1);
        fill_normal(gamma, 2);
        std::vector<double> want;
        for (int64_t i = 0; i < s.rows; ++i)
          for (int64_t j = 0; j < s.cols; ++j)
            want.push_back((scaled ? double(gamma(0, j)) : 1) * double(dy(i, j)));
        const A* scale = scaled ? gamma.data() : nullptr;
        OF_RUN(queue, residual_backward,
               ResidualBackward<T>{.dy = dy.data(),
                                   .lddy = dy.ld(),
                                   .gamma = scale,
                                   .dz = dz.data(),
                                   .lddz = dz.ld(),
                                   .rows = s.rows,
                                   .cols = s.cols});
        finish(queue);
        EXPECT_TRUE(close(dz, want, Budget{0.505 * epsilon<T> + 0.5 * epsilon<A>, 1e-37}));
      }
    }
  });
}

TYPED_TEST(Residual, ColumnSums) {
  using T = TypeParam;
  using A = Accum<T>;
  const int threads = cpu::threads();
  for_each_device<TypeParam>([](const Queue& queue) {
    for (const Shape s : kSumShapes) {
      SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols);
      Buffer<A> dy(s.rows, s.cols, s.padding);
      Buffer<T> z(s.rows, s.cols, s.padding + 1);
      fill_normal(dy, 1, 0.3);
      fill_normal(z, 2, 0.3);
      std::vector<double> dgamma(size_t(s.cols)), db(size_t(s.cols)), dgamma_size(size_t(s.cols)),
          db_size(size_t(s.cols));
      for (int64_t i = 0; i < s.rows; ++i)
        for (int64_t j = 0; j < s.cols; ++j) {
          dgamma[size_t(j)] += double(dy(i, j)) * double(z(i, j));
          dgamma_size[size_t(j)] += std::abs(double(dy(i, j)) * double(z(i, j)));
          db[size_t(j)] += double(z(i, j));
          db_size[size_t(j)] += std::abs(double(z(i, j)));
        }
      const double k = TestFixture::kUnit * (double(std::min<int64_t>(s.rows, 128)) / 2 + 2);
      Buffer<A> got_dgamma(1, s.cols), got_db(1, s.cols);
      for (int times : {1, 2}) {  // written, then added to
        {
          const WithScratch at(queue, gpu::residual_backward_gamma_scratch(s.rows, s.cols));
          OF_RUN(at, residual_backward_gamma,
                 ResidualBackwardGamma<T>{.dy = dy.data(),
                                          .lddy = dy.ld(),
                                          .z = z.data(),
                                          .ldz = z.ld(),
                                          .dgamma = got_dgamma.data(),
                                          .accumulate = times == 2,
                                          .rows = s.rows,
                                          .cols = s.cols});
          finish(at);
        }
        bias_backward(queue, z, got_db, times == 2);
        std::vector<double> want_dgamma = dgamma, want_db = db;
        for (double& v : want_dgamma) v *= times;
        for (double& v : want_db) v *= times;
        EXPECT_TRUE(close(got_dgamma, want_dgamma, [&](int64_t, int64_t j) -> double {
          return k * times * dgamma_size[size_t(j)];
        }));
        EXPECT_TRUE(close(got_db, want_db, [&](int64_t, int64_t j) -> double {
          return k * times * db_size[size_t(j)];
        }));
      }
      Buffer<A> one_thread(1, s.cols), two_threads(1, s.cols);
      cpu::set_threads(1);
      bias_backward(queue, z, one_thread, false);
      cpu::set_threads(2);
      bias_backward(queue, z, two_threads, false);
      EXPECT_TRUE(identical(one_thread, two_threads));
    }
  });
  cpu::set_threads(threads);
}

TEST(ResidualGradient, AgreesWithFiniteDifferences) {
  Buffer<double> x(3, 5), z(3, 5), gamma(1, 5), y(3, 5), weight(3, 5);
  Buffer<double> dz(3, 5), dgamma(1, 5);
  fill_normal(x, 1);
  fill_normal(z, 2);
  fill_normal(gamma, 3);
  fill_normal(weight, 4);
  const auto loss = [&] {
    cpu::residual_forward(ResidualForward<double>{.x = x.data(),
                                                  .ldx = 5,
                                                  .z = z.data(),
                                                  .ldz = 5,
                                                  .gamma = gamma.data(),
                                                  .y = y.data(),
                                                  .ldy = 5,
                                                  .rows = 3,
                                                  .cols = 5});
    return weighted_sum(y, weight);
  };
  cpu::residual_backward(ResidualBackward<double>{.dy = weight.data(),
                                                  .lddy = 5,
                                                  .gamma = gamma.data(),
                                                  .dz = dz.data(),
                                                  .lddz = 5,
                                                  .rows = 3,
                                                  .cols = 5});
  cpu::residual_backward_gamma(ResidualBackwardGamma<double>{.dy = weight.data(),
                                                             .lddy = 5,
                                                             .z = z.data(),
                                                             .ldz = 5,
                                                             .dgamma = dgamma.data(),
                                                             .rows = 3,
                                                             .cols = 5});
  EXPECT_TRUE(check_gradient(loss, x, weight));
  EXPECT_TRUE(check_gradient(loss, z, dz));
  EXPECT_TRUE(check_gradient(loss, gamma, dgamma));
}

}  // namespace
}  // namespace orthofed::test
