#include "kernels/layer_norm/layer_norm.h"

#include <algorithm>
#include <cmath>

#include "tests/kernels/layer_norm_reference.h"
#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/gradcheck.h"
#include "tests/support/random.h"

namespace orthofed::test {
namespace {

constexpr double kEps = 1e-6;

struct Shape {
  int64_t rows, cols, padding;
};
// Pitches that 16-byte packs can use and others; rows around the 256, 768 and 1,536 columns that
// warps hold in registers.
constexpr Shape kShapes[] = {{0, 8, 0},   {1, 1, 0},   {1, 15, 1},   {3, 16, 0},  {2, 17, 3},
                             {5, 33, 2},  {67, 24, 0}, {3, 197, 1},  {2, 257, 0}, {2, 768, 0},
                             {2, 769, 3}, {5, 192, 8}, {1, 1536, 0}, {1, 1541, 3}};
// Around the 32 columns and 128 rows of a column sum's blocks.
constexpr Shape kSumShapes[] = {{0, 8, 0}, {1, 1, 0}, {2, 31, 3}, {129, 33, 0}, {259, 8, 2}};

template <class T>
struct Case {
  using A = Accum<T>;
  explicit Case(Shape s)
      : x(s.rows, s.cols, s.padding),
        gamma(1, s.cols),
        beta(1, s.cols),
        dy(s.rows, s.cols, s.padding + 1),
        residual(s.rows, s.cols, s.padding + 2),
        mean(1, s.rows),
        rstd(1, s.rows),
        y(s.rows, s.cols, s.padding + 3) {
    fill_normal(x, 1, 0.5, 2);
    fill_normal(gamma, 2, 1, 0.3);
    fill_normal(beta, 3);
    fill_normal(dy, 4);
    fill_normal(residual, 5);
  }
  LayerNormForward<T> forward_arguments() {
    return {.x = x.data(),
            .ldx = x.ld(),
            .gamma = gamma.data(),
            .beta = beta.data(),
            .y = y.data(),
            .ldy = y.ld(),
            .mean = mean.data(),
            .rstd = rstd.data(),
            .rows = x.rows(),
            .cols = x.cols(),
            .eps = kEps};
  }
  LayerNormBackward<T> backward_arguments(const Buffer<A>* bypass, Buffer<A>& dx) {
    return {.dy = dy.data(),
            .lddy = dy.ld(),
            .x = x.data(),
            .ldx = x.ld(),
            .gamma = gamma.data(),
            .mean = mean.data(),
            .rstd = rstd.data(),
            .residual = bypass ? bypass->data() : nullptr,
            .ldr = bypass ? bypass->ld() : 0,
            .dx = dx.data(),
            .lddx = dx.ld(),
            .rows = x.rows(),
            .cols = x.cols()};
  }
  void forward(const Queue& queue = {}) {
    OF_RUN(queue, layer_norm_forward, forward_arguments());
    finish(queue);
  }
  void backward(const Buffer<A>* bypass, Buffer<A>& dx, const Queue& queue = {}) {
    OF_RUN(queue, layer_norm_backward, backward_arguments(bypass, dx));
    finish(queue);
  }
  void backward_affine(Buffer<A>& dgamma, Buffer<A>& dbeta, bool accumulate,
                       const Queue& queue = {}) {
    const WithScratch at(queue, gpu::layer_norm_backward_affine_scratch(x.rows(), x.cols()));
    OF_RUN(at, layer_norm_backward_affine,
           LayerNormBackwardAffine<T>{.dy = dy.data(),
                                      .lddy = dy.ld(),
                                      .x = x.data(),
                                      .ldx = x.ld(),
                                      .mean = mean.data(),
                                      .rstd = rstd.data(),
                                      .dgamma = dgamma.data(),
                                      .dbeta = dbeta.data(),
                                      .accumulate = accumulate,
                                      .rows = x.rows(),
                                      .cols = x.cols()});
    finish(at);
  }
  Buffer<A> x, gamma, beta;
  Buffer<T> dy;
  Buffer<A> residual, mean, rstd;
  Buffer<T> y;
};

// All rows of the reference, and the sizes that the error bounds speak of.
struct Reference {
  template <class T>
  explicit Reference(const Case<T>& c) {
    const int64_t rows = c.x.rows(), cols = c.x.cols();
    dgamma.assign(size_t(cols), 0);
    dbeta.assign(size_t(cols), 0);
    dgamma_size = dbeta_size = dgamma;
    for (int64_t i = 0; i < rows; ++i) {
      const auto g = [&](int64_t j) { return double(c.dy(i, j)) * double(c.gamma(0, j)); };
      const auto row = reference::layer_norm_row(cols, kEps, [&](int64_t j) { return c.x(i, j); });
      double largest = 0, g_size = 0;
      for (int64_t j = 0; j < cols; ++j) {
        const double h = row.h[size_t(j)], d = double(c.dy(i, j));
        largest = std::max(largest, std::abs(double(c.x(i, j))) * row.rstd);
        y.push_back(h * c.gamma(0, j) + c.beta(0, j));
        g_size = std::max(g_size, std::abs(g(j)));
        dgamma[size_t(j)] += d * h;
        dgamma_size[size_t(j)] += std::abs(d) * (std::abs(h) + 1);
        dbeta[size_t(j)] += d;
        dbeta_size[size_t(j)] += std::abs(d);
      }
      for (const double v : reference::layer_norm_gradient(row, g)) dx.push_back(v);
      mean.push_back(row.mean);
      rstd.push_back(row.rstd);
      size.push_back(largest);
      dx_size.push_back(row.rstd * g_size);
    }
  }
  std::vector<double> y, dx;                                   // [rows, cols]
  std::vector<double> mean, rstd, size, dx_size;               // [rows]; size: max |x| rstd
  std::vector<double> dgamma, dbeta, dgamma_size, dbeta_size;  // [cols]
};

// The reference is in double and errs by some of its own roundings.
template <class T>
constexpr double kUnit = std::max(epsilon<Accum<T>>, 0x1p-48);

template <class T>
class LayerNorm : public testing::Test {};
using Types = testing::Types<double, float, bf16>;
TYPED_TEST_SUITE(LayerNorm, Types);

// What forward wrote. k: additions that one value passes through.
template <class T>
void check_forward(const Case<T>& c, double k) {
  constexpr double unit = kUnit<T>, rounding = epsilon<T> / 2;
  const Reference want(c);
  EXPECT_TRUE(close(c.y, want.y, [&](int64_t i, int64_t j) -> double {
    const double gamma = std::abs(double(c.gamma(0, j)));
    return unit * (k * gamma * want.size[size_t(i)] + 2 * std::abs(double(c.beta(0, j)))) +
           rounding * 1.01 * std::abs(want.y[size_t(i * c.x.cols() + j)]);
  }));
  EXPECT_TRUE(close(c.mean, want.mean, [&](int64_t, int64_t i) -> double {
    return unit * k * want.size[size_t(i)] / want.rstd[size_t(i)];
  }));
  EXPECT_TRUE(close(c.rstd, want.rstd, [&](int64_t, int64_t i) -> double {
    return unit * k * want.rstd[size_t(i)] * (1 + want.size[size_t(i)]);
  }));
}

// backward(bypass, dx), with and without a bypass, apart and in place.
template <class T, class Backward>
void check_backward(const Case<T>& c, double k, const Backward& backward) {
  using A = Accum<T>;
  constexpr double unit = kUnit<T>;
  const Reference want(c);
  const int64_t rows = c.x.rows(), cols = c.x.cols();
  const auto budget = [&](int64_t i, int64_t j) -> double {
    return 4 * unit * k * want.dx_size[size_t(i)] *
               (1 + want.size[size_t(i)] * want.size[size_t(i)]) +
           unit * std::abs(double(c.residual(i, j)));
  };
  Buffer<A> dx(rows, cols, 5);
  backward(nullptr, dx);
  EXPECT_TRUE(close(dx, want.dx, budget));
  std::vector<double> with_bypass = want.dx;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j)
      with_bypass[size_t(i * cols + j)] += double(c.residual(i, j));
  backward(&c.residual, dx);
  EXPECT_TRUE(close(dx, with_bypass, budget));
  Buffer<A> in_place = c.residual;
  backward(&in_place, in_place);
  EXPECT_TRUE(identical(dx, in_place));
  EXPECT_TRUE(in_place.verify());
}

double additions(const Shape& s) {
  return double(s.cols) / 16 + 8;
}

TYPED_TEST(LayerNorm, Forward) {
  for_each_device<TypeParam>([](const Queue& queue) {
    for (const Shape s : kShapes) {
      SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols);
      Case<TypeParam> c(s), again(s);
      c.forward(queue);
      check_forward(c, additions(s));
      again.forward(queue);
      EXPECT_TRUE(identical(c.y, again.y));
    }
  });
}

TYPED_TEST(LayerNorm, BackwardWithAndWithoutBypass) {
  for_each_device<TypeParam>([](const Queue& queue) {
    for (const Shape s : kShapes) {
      SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols);
      Case<TypeParam> c(s);
      c.forward();
      check_backward(c, additions(s), [&](const Buffer<Accum<TypeParam>>* bypass, auto& dx) {
        c.backward(bypass, dx, queue);
      });
    }
  });
}

TYPED_TEST(LayerNorm, EveryVersion) {
  using T = TypeParam;
  if constexpr (gpu_computes<T>) {
    for_each_gpu([](const Queue& queue) {
      on_stream(queue, [&]<class Stream>(const Stream& stream) {
        for (const Shape s : kShapes) {
          SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols);
          for (const auto& version : gpu::layer_norm_forward_versions<T, Stream>()) {
            SCOPED_TRACE(version.name);
            Case<T> c(s), again(s);
            version.run(c.forward_arguments(), stream);
            version.run(again.forward_arguments(), stream);
            finish(queue);
            check_forward(c, version.number == 1 ? double(s.cols) + 8 : additions(s));
            EXPECT_TRUE(identical(c.y, again.y));
          }
          for (const auto& version : gpu::layer_norm_backward_versions<T, Stream>()) {
            SCOPED_TRACE(version.name);
            Case<T> c(s);
            c.forward();
            check_backward(c, version.number == 1 ? double(s.cols) + 8 : additions(s),
                           [&](const Buffer<Accum<T>>* bypass, auto& dx) {
                             version.run(c.backward_arguments(bypass, dx), stream);
                             finish(queue);
                           });
          }
        }
      });
    });
  }
}

TYPED_TEST(LayerNorm, BackwardAffine) {
  using A = Accum<TypeParam>;
  for_each_device<TypeParam>([](const Queue& queue) {
    for (const Shape s : kSumShapes) {
      SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols);
      Case<TypeParam> c(s);
      c.forward();
      Reference want(c);
      Buffer<A> dgamma(1, s.cols), dbeta(1, s.cols);
      for (bool accumulate : {false, true}) {
        c.backward_affine(dgamma, dbeta, accumulate, queue);
        const double times = accumulate ? 2 : 1;
        const double k =
            2 * times * (double(std::min<int64_t>(s.rows, 128)) + 1 + double(s.cols) / 16 + 8);
        for (size_t j = 0; accumulate && j < want.dgamma.size(); ++j) {
          want.dgamma[j] *= 2;
          want.dbeta[j] *= 2;
        }
        EXPECT_TRUE(close(dgamma, want.dgamma, [&](int64_t, int64_t j) -> double {
          return kUnit<TypeParam> * k * want.dgamma_size[size_t(j)];
        }));
        EXPECT_TRUE(close(dbeta, want.dbeta, [&](int64_t, int64_t j) -> double {
          return kUnit<TypeParam> * k * want.dbeta_size[size_t(j)];
        }));
      }
    }
  });
}

TEST(LayerNormGradient, AgreesWithFiniteDifferences) {
  Case<double> c({3, 7, 1});
  Buffer<double> weight(3, 7);  // the loss is sum(weight * y), so dy = weight
  fill_normal(weight, 9);
  c.dy = weight;
  const auto loss = [&] {
    c.forward();
    return weighted_sum(c.y, weight);
  };
  loss();
  Buffer<double> dx(3, 7), dgamma(1, 7), dbeta(1, 7);
  c.backward(nullptr, dx);
  c.backward_affine(dgamma, dbeta, false);
  EXPECT_TRUE(check_gradient(loss, c.x, dx));
  EXPECT_TRUE(check_gradient(loss, c.gamma, dgamma));
  EXPECT_TRUE(check_gradient(loss, c.beta, dbeta));
}

// Small deviations on a large mean: sum(x^2)/n - mean^2 would lose every digit of the variance.
TEST(LayerNormForward, KeepsTheVarianceOfALargeMean) {
  for_each_device<float>([](const Queue& queue) {
    Case<float> c({2, 64, 0});
    for (int64_t i = 0; i < 2; ++i)
      for (int64_t j = 0; j < 64; ++j) c.x(i, j) = 4096.0f + float(j % 2);
    c.forward(queue);
    EXPECT_TRUE(
        close(c.rstd, {1 / std::sqrt(0.25 + kEps), 1 / std::sqrt(0.25 + kEps)}, Budget{1e-6, 0}));
  });
}

TEST(LayerNormForward, NanStaysInItsRow) {
  for_each_device<float>([](const Queue& queue) {
    Case<float> c({2, 33, 0});
    c.x(0, 7) = NAN;
    c.forward(queue);
    for (int64_t j = 0; j < 33; ++j) {
      EXPECT_TRUE(std::isnan(c.y(0, j)));
      EXPECT_TRUE(std::isfinite(c.y(1, j)));
    }
  });
}

}  // namespace
}  // namespace orthofed::test
