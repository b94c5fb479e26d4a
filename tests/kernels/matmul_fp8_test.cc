#include "kernels/matmul_fp8/matmul_fp8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "kernels/core/check.h"
#include "tests/kernels/matmul_reference.h"
#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/random.h"

namespace orthofed::test {
namespace {

constexpr double kLargest = 448;

// for_each_device, with an emulated GPU that has FP8; a real one only if it does.
template <class F>
void for_each_fp8_device(F&& body) {
  for_each_device<bf16>([&](Queue queue) {
    queue.simt.capability = 90;
#ifdef OF_HAVE_CUDA
    if (queue.device == Device::cuda && !gpu::multiplies_fp8(queue.cuda)) return;
#endif
    body(queue);
  });
}

// Rows of bytes as the kernels want them: bases and pitches multiples of 16.
int64_t padding_to_16(int64_t cols, int64_t more = 0) {
  return (16 - cols % 16) % 16 + 16 * more;
}

template <class T>
QuantizeRows<T> quantize_arguments(const Buffer<T>& x, Buffer<e4m3>& q, Buffer<float>& scales) {
  return {.x = x.data(),
          .ldx = x.ld(),
          .q = q.data(),
          .ldq = q.ld(),
          .scales = scales.data(),
          .rows = x.rows(),
          .cols = x.cols()};
}

// --- quantize_rows ------------------------------------------------------------------------------

struct Shape {
  int64_t rows, cols, padding;
};
// Rows around the packs (4 and 8), the 16 bytes to which zeros go, and the 256, 768 and 1,536
// columns that warps hold in registers.
constexpr Shape kShapes[] = {{0, 4, 0},   {3, 0, 0},   {2, 1, 0},    {9, 5, 3},   {3, 15, 1},
                             {2, 16, 0},  {5, 17, 2},  {33, 197, 3}, {3, 256, 0}, {2, 257, 0},
                             {3, 769, 7}, {2, 776, 0}, {1, 1536, 0}, {2, 1537, 0}};

template <class T>
class RowsInFp8 : public testing::Test {};
using Types = testing::Types<float, bf16>;
TYPED_TEST_SUITE(RowsInFp8, Types);

TYPED_TEST(RowsInFp8, EveryNumberWithinItsBound) {
  for_each_device<TypeParam>([](const Queue& queue) {
    for (const Shape s : kShapes) {
      SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols);
      const int64_t zeros = padding_to_16(s.cols);
      Buffer<TypeParam> x(s.rows, s.cols, s.padding);
      Buffer<e4m3> q(s.rows, s.cols + zeros, 16);
      Buffer<float> scales(1, s.rows);
      fill_normal(x, 1);
      for (int64_t i = 0; i < s.rows; ++i)  // rows of all sizes, and an outlier in one
        for (int64_t p = 0; p < s.cols; ++p)
          x(i, p) = TypeParam(float(x(i, p)) * std::ldexp(1.0f, int(i % 7) * 9 - 27));
      if (s.rows > 1 && s.cols > 1) x(1, s.cols / 2) = TypeParam(1e4f);
      OF_RUN(queue, quantize_rows, quantize_arguments(x, q, scales));
      finish(queue);
      for (int64_t i = 0; i < s.rows; ++i) {
        double largest = 0;
        for (int64_t p = 0; p < s.cols; ++p) largest = std::max(largest, std::abs(double(x(i, p))));
        const double scale = scales(0, i), eps = epsilon<float>;
        ASSERT_NEAR(scale, s.cols > 0 ? largest / kLargest : 1, eps * scale) << i;
        for (int64_t p = 0; p < s.cols + zeros; ++p) {
          const double value = p < s.cols ? double(x(i, p)) : 0;
          const double bound = std::max(0x1p-4 * std::abs(value), 0x1p-10 * scale) * (1 + 4 * eps);
          ASSERT_TRUE(std::abs(value - scale * double(float(q(i, p)))) <=
                      (p < s.cols ? bound : 0.0))
              << i << ", " << p << ": " << value << " became " << float(q(i, p)) << " times "
              << scale;
        }
      }
      ASSERT_TRUE(q.verify());
      ASSERT_TRUE(scales.verify());
      ASSERT_TRUE(x.verify());
    }
  });
}

TYPED_TEST(RowsInFp8, SameBitsOnEveryDevice) {
  const Shape s{5, 301, 3};
  Buffer<TypeParam> x(s.rows, s.cols, s.padding);
  fill_normal(x, 2);
  const auto run = [&](const Queue& queue) {
    Buffer<e4m3> q(s.rows, s.cols + padding_to_16(s.cols));
    Buffer<float> scales(1, s.rows);
    OF_RUN(queue, quantize_rows, quantize_arguments(x, q, scales));
    finish(queue);
    return std::pair{q, scales};
  };
  const auto [want, want_scales] = run(Queue{});
  for_each_device<TypeParam>([&](const Queue& queue) {
    const auto [q, scales] = run(queue);
    EXPECT_TRUE(identical(want, q));
    EXPECT_TRUE(identical(want_scales, scales));
  });
}

// The largest of a row is exact; a row of zeros has the scale 1, one of numbers too small for a
// scale too; NaN stays, infinity becomes NaN, and other rows do not notice.
TYPED_TEST(RowsInFp8, UnusualRows) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for_each_device<TypeParam>([&](const Queue& queue) {
    for (const int64_t at : {0, 20, 36}) {
      Buffer<TypeParam> x(6, 37);
      x.fill(TypeParam(0.0f));
      x(1, at) = TypeParam(-3.0f);
      x(2, at) = TypeParam(kNan);
      x(2, (at + 1) % 37) = TypeParam(5.0f);
      x(3, at) = TypeParam(-kInfinity);
      x(4, at) = TypeParam(1e-37f);
      x(5, at) = TypeParam(0x1p127f);
      Buffer<e4m3> q(6, 48);
      Buffer<float> scales(1, 6);
      OF_RUN(queue, quantize_rows, quantize_arguments(x, q, scales));
      finish(queue);
      EXPECT_EQ(scales(0, 0), 1.0f);
      EXPECT_EQ(float(q(0, at)), 0.0f);
      EXPECT_EQ(float(q(1, at)), -448.0f);
      EXPECT_EQ(scales(0, 1), 3.0f / 448.0f);
      EXPECT_TRUE(std::isnan(scales(0, 2)));
      EXPECT_TRUE(std::isnan(scales(0, 3) * float(q(3, at))));
      EXPECT_EQ(scales(0, 4), 1.0f);
      EXPECT_EQ(float(q(4, at)), 0.0f);
      EXPECT_EQ(float(q(5, at)), 448.0f);
      EXPECT_EQ(scales(0, 5), 0x1p127f / 448.0f);
    }
  });
}

// --- matmul_fp8 ---------------------------------------------------------------------------------

struct Case {
  int64_t m, n, k;
  bool bias = false;
  int64_t padding = 0;  // of C

  std::string name() const {
    return std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k) +
           (bias ? " +bias" : "") + " padding " + std::to_string(padding);
  }
};

// Around the instructions' 16 x 8 x 32 and 64 x 128 x 32, the steps' 64 and 128 along k, four
// stages of them, and the tile of 128; the last case has more tiles than the emulator has blocks.
constexpr Case kCases[] = {{1, 1, 1, true},
                           {7, 17, 5, false, 3},
                           {16, 8, 32, true},
                           {17, 9, 33, true, 1},
                           {64, 64, 64},
                           {65, 131, 63, true, 1},
                           {129, 67, 130, true},
                           {24, 40, 331, false, 8},
                           {128, 128, 96, true},
                           {0, 5, 3, true},
                           {5, 0, 3},
                           {5, 3, 0, true, 1},
                           {515, 24, 48, true, 3},
                           {33, 12, 769}};

struct Operands {
  Buffer<e4m3> a, b;
  Buffer<float> scales_a, scales_b, bias;

  explicit Operands(const Case& t)
      : a(t.m, t.k, padding_to_16(t.k)),
        b(t.n, t.k, padding_to_16(t.k, 1)),
        scales_a(1, t.m),
        scales_b(1, t.n),
        bias(1, t.n) {
    // All finite numbers there are, signs included, so that a row has large and small ones.
    fill(a, 1);
    fill(b, 2);
    fill_uniform(scales_a, 3, 0.01, 10);
    fill_uniform(scales_b, 4, 1e-4, 1e-2);
    fill_normal(bias, 5);
  }
  static void fill(Buffer<e4m3>& x, uint64_t stream) {
    const Philox rng = PhiloxKey(seed()).with(stream);
    for (int64_t i = 0; i < x.rows(); ++i) {
      for (int64_t p = 0; p < x.cols(); ++p) {
        const uint32_t bits = rng(uint64_t(i * x.cols() + p))[0];
        x(i, p).bits = uint8_t((bits & 0x80) | (bits >> 8) % 0x7f);
      }
      for (int64_t p = x.cols(); p < (x.cols() + 15) / 16 * 16; ++p)
        x.data()[i * x.ld() + p] = e4m3(0.0f);
    }
  }
  template <class C>
  MatmulFp8<C> arguments(const Case& t, Buffer<C>& out) const {
    return {.a = a.data(),
            .scales_a = scales_a.data(),
            .b = b.data(),
            .scales_b = scales_b.data(),
            .c = out.data(),
            .bias = t.bias ? bias.data() : nullptr,
            .shape = {t.m, t.n, t.k, a.ld(), b.ld(), out.ld(), Op::none, Op::transpose}};
  }
};

struct Reference {
  std::vector<double> want, size;  // [m, n]; size: sa sb sum |a b|

  Reference(const Operands& in, const Case& t) {
    for (int64_t i = 0; i < t.m; ++i)
      for (int64_t j = 0; j < t.n; ++j) {
        const auto sum = reference::product_element(
            t.k, [&](int64_t p) -> double { return float(in.a(i, p)); },
            [&](int64_t p) -> double { return float(in.b(j, p)); });
        const double scale = double(in.scales_a(0, i)) * double(in.scales_b(0, j));
        want.push_back(sum.value * scale + (t.bias ? double(in.bias(0, j)) : 0));
        size.push_back(sum.size * scale);
      }
  }

  // matmul_fp8.h
  template <class C>
  testing::AssertionResult check(const Operands& in, const Case& t, const Buffer<C>& out,
                                 Device device) const {
    constexpr double e = epsilon<float>;
    const double dropped = device == Device::cuda ? 132 * 0x1p-13 : 0;
    return close(out, want, [&](int64_t i, int64_t j) -> double {
      const auto at = size_t(i * t.n + j);
      const double sums = (double(t.k + 4) * e / 2 + dropped) * size[at] +
                          (t.bias ? e / 2 * std::abs(double(in.bias(0, j))) : 0);
      return sums + epsilon<C> / 2 * (std::abs(want[at]) + sums);
    });
  }
};

template <class C>
Buffer<C> multiply(const Queue& queue, const Operands& in, const Case& t) {
  Buffer<C> out(t.m, t.n, t.padding);
  OF_RUN(queue, matmul_fp8, in.arguments(t, out));
  finish(queue);
  return out;
}

template <class C>
class ProductInFp8 : public testing::Test {};
TYPED_TEST_SUITE(ProductInFp8, Types);

TYPED_TEST(ProductInFp8, EveryCase) {
  for (const Case& t : kCases) {
    SCOPED_TRACE(t.name());
    const Operands in(t);
    const Reference reference(in, t);
    for_each_fp8_device([&](const Queue& queue) {
      if (t.m > 500 && queue.device == Device::simt) return;  // there for the CPU's pieces
      ASSERT_TRUE(reference.check(in, t, multiply<TypeParam>(queue, in, t), queue.device));
    });
    if (this->HasFatalFailure()) return;
  }
}

// The same bits in every schedule and at every run.
TYPED_TEST(ProductInFp8, EveryVersion) {
  std::map<int, int> run;  // version: cases
  for (const Case& t : kCases) {
    if (t.m > 500) continue;
    SCOPED_TRACE(t.name());
    const Operands in(t);
    const Reference reference(in, t);
    std::map<std::pair<Device, int>, Buffer<TypeParam>> first;
    for_each_gpu([&](Queue queue) {
      queue.simt.capability = 90;  // where both run
      on_stream(queue, [&]<class Stream>(const Stream& stream) {
        for (const auto& version : gpu::matmul_fp8_versions<TypeParam, Stream>()) {
          SCOPED_TRACE(version.name);
          Buffer<TypeParam> out(t.m, t.n, t.padding);
          const auto arguments = in.arguments(t, out);
          if (!version.applies(arguments, stream)) continue;
          version.run(arguments, stream);
          finish(queue);
          ++run[version.number];
          ASSERT_TRUE(reference.check(in, t, out, queue.device));
          const auto known = first.try_emplace({queue.device, version.number}, out).first;
          ASSERT_TRUE(identical(known->second, out));
        }
      });
    });
    if (this->HasFatalFailure()) return;
  }
  if (wanted(Device::simt)) {
    EXPECT_GE(run[1], 3 * 13);
    EXPECT_GE(run[2], 3 * 10);
  }
}

// What the two functions give together: a product of matrices with outliers and a row of zeros, as
// near to the exact one as the errors of single numbers allow.
TYPED_TEST(ProductInFp8, OfQuantisedMatrices) {
  const int64_t m = 19, n = 21, k = 197, padding = padding_to_16(k);
  Buffer<TypeParam> x(m, k, 3);
  Buffer<float> w(n, k);
  fill_normal(x, 1);
  fill_normal(w, 2, 0, 0.02);
  for (int64_t i = 0; i < m; ++i) x(i, 5) = TypeParam(40.0f);  // one loud feature in every token
  for (int64_t p = 0; p < k; ++p) x(3, p) = TypeParam(0.0f), w(4, p) *= 100;
  for_each_fp8_device([&](const Queue& queue) {
    Buffer<e4m3> a(m, k, padding), b(n, k, padding);
    Buffer<float> sa(1, m), sb(1, n);
    Buffer<float> y(m, n);
    OF_RUN(queue, quantize_rows, quantize_arguments(x, a, sa));
    OF_RUN(queue, quantize_rows, quantize_arguments(w, b, sb));
    OF_RUN(queue, matmul_fp8,
           MatmulFp8<float>{.a = a.data(),
                            .scales_a = sa.data(),
                            .b = b.data(),
                            .scales_b = sb.data(),
                            .c = y.data(),
                            .bias = nullptr,
                            .shape = {m, n, k, a.ld(), b.ld(), n, Op::none, Op::transpose}});
    finish(queue);
    const auto off = [](double value, double scale) {  // how far a number may be from its e4m3
      return std::max(0x1p-4 * std::abs(value), 0x1p-10 * scale) * (1 + 4 * epsilon<float>);
    };
    std::vector<double> want, allowed;
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0, error = 0, size = 0;
        for (int64_t p = 0; p < k; ++p) {
          const double u = double(x(i, p)), v = w(j, p);
          const double du = off(u, sa(0, i)), dv = off(v, sb(0, j));
          sum += u * v;
          error += du * std::abs(v) + std::abs(u) * dv + du * dv;
          size += (std::abs(u) + du) * (std::abs(v) + dv);
        }
        const double dropped = queue.device == Device::cuda ? 132 * 0x1p-13 : 0;
        want.push_back(sum);
        allowed.push_back(error + (double(k + 4) * epsilon<float> + dropped) * size);
      }
    ASSERT_TRUE(close(y, want, [&](int64_t i, int64_t j) { return allowed[size_t(i * n + j)]; }));
  });
}

// NaN and infinity make their row NaN, and no other.
TYPED_TEST(ProductInFp8, ShowsWhatIsNotFinite) {
  const int64_t m = 40, n = 9, k = 70, padding = padding_to_16(k);
  Buffer<TypeParam> x(m, k);
  Buffer<float> w(n, k);
  fill_normal(x, 1);
  fill_normal(w, 2);
  x(7, 69) = TypeParam(std::numeric_limits<float>::infinity());
  x(33, 0) = TypeParam(std::numeric_limits<float>::quiet_NaN());
  for_each_fp8_device([&](const Queue& queue) {
    Buffer<e4m3> a(m, k, padding), b(n, k, padding);
    Buffer<float> sa(1, m), sb(1, n), bias(1, n);
    bias.fill(1.0f);
    Buffer<TypeParam> y(m, n);
    OF_RUN(queue, quantize_rows, quantize_arguments(x, a, sa));
    OF_RUN(queue, quantize_rows, quantize_arguments(w, b, sb));
    OF_RUN(queue, matmul_fp8,
           MatmulFp8<TypeParam>{.a = a.data(),
                                .scales_a = sa.data(),
                                .b = b.data(),
                                .scales_b = sb.data(),
                                .c = y.data(),
                                .bias = bias.data(),
                                .shape = {m, n, k, a.ld(), b.ld(), n, Op::none, Op::transpose}});
    finish(queue);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j)
        EXPECT_EQ(std::isnan(float(y(i, j))), i == 7 || i == 33) << i << ", " << j;
  });
}

TEST(MatmulFp8Contract, Refuses) {
  alignas(16) e4m3 q[64] = {};
  float x[64] = {};
  QuantizeRows<float> rows{
      .x = x, .ldx = 20, .q = q, .ldq = 24, .scales = x, .rows = 1, .cols = 20};
  EXPECT_THROW(cpu::quantize_rows(rows), Error);  // pitch
  rows.q = q + 1;
  rows.ldq = 32;
  EXPECT_THROW(cpu::quantize_rows(rows), Error);
  const MatmulFp8<float> right{.a = q,
                               .scales_a = x,
                               .b = q,
                               .scales_b = x,
                               .c = x,
                               .bias = nullptr,
                               .shape = {1, 1, 16, 16, 16, 1, Op::none, Op::transpose}};
  EXPECT_NO_THROW(cpu::matmul_fp8(right));
  MatmulFp8<float> wrong = right;
  wrong.shape.op_b = Op::none;
  EXPECT_THROW(cpu::matmul_fp8(wrong), Error);
  wrong = right;
  wrong.shape.lda = 8;
  EXPECT_THROW(cpu::matmul_fp8(wrong), Error);
  // The emulated device is of compute capability 8.0 unless it is asked for another.
  simt::Stream stream;
  EXPECT_FALSE(gpu::multiplies_fp8(stream));
  EXPECT_THROW(gpu::matmul_fp8(right, stream), Error);
  stream.capability = 90;
  EXPECT_TRUE(gpu::multiplies_fp8(stream));
}

// The budget notices one dropped product, and a product with its neighbour's scale.
TEST(MatmulFp8Checker, NoticesWhatIsWrong) {
  const Case t{5, 9, 64};
  const Operands in(t);
  const Reference reference(in, t);
  Buffer<float> out = multiply<float>(Queue{}, in, t);
  ASSERT_TRUE(reference.check(in, t, out, Device::cpu));
  const float right = out(3, 4);
  int64_t p = 0;
  while (std::abs(float(in.a(3, p)) * float(in.b(4, p))) < 1) ++p;
  out(3, 4) -= float(in.a(3, p)) * float(in.b(4, p)) * in.scales_a(0, 3) * in.scales_b(0, 4);
  EXPECT_FALSE(reference.check(in, t, out, Device::cpu));
  out(3, 4) = right / in.scales_b(0, 4) * in.scales_b(0, 5);
  EXPECT_FALSE(reference.check(in, t, out, Device::cpu));
}

}  // namespace
}  // namespace orthofed::test
