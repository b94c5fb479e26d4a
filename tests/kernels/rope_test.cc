#include "kernels/rope/rope.h"

#include <cmath>

#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/gradcheck.h"
#include "tests/support/random.h"

namespace orthofed::test {
namespace {

struct Case {
  int64_t batch, tokens, prefix, heads, head_dim, rest;  // rest: columns that stay (v)
};
// Halves that are whole packs and others; no prefix, nothing but prefix, no image.
constexpr Case kCases[] = {{1, 1, 0, 1, 2, 0},   {2, 5, 1, 4, 8, 16},  {3, 7, 5, 2, 12, 3},
                           {2, 21, 5, 6, 16, 1}, {1, 9, 0, 2, 64, 64}, {2, 3, 3, 2, 4, 0},
                           {0, 4, 1, 2, 4, 0},   {2, 33, 4, 4, 6, 5}};

template <class T>
struct Operands {
  Buffer<T> x;
  Buffer<Accum<T>> cos, sin;
  RopeShape shape;
  explicit Operands(const Case& t)
      : x(t.batch * t.tokens, t.heads * t.head_dim + t.rest, 3),
        cos(t.tokens - t.prefix, t.head_dim / 2),
        sin(t.tokens - t.prefix, t.head_dim / 2),
        shape{t.batch, t.tokens, t.prefix, t.heads, t.head_dim, x.ld()} {
    fill_normal(x, 1);
    Buffer<double> angle(t.tokens - t.prefix, t.head_dim / 2);
    fill_normal(angle, 2, 0, 3);
    for (int64_t i = 0; i < t.tokens - t.prefix; ++i)
      for (int64_t j = 0; j < t.head_dim / 2; ++j) {
        cos(i, j) = Accum<T>(std::cos(angle(i, j)));
        sin(i, j) = Accum<T>(std::sin(angle(i, j)));
      }
  }
};

template <class T>
class Rope : public testing::Test {};
using Types = testing::Types<double, float, bf16>;
TYPED_TEST_SUITE(Rope, Types);

// Forward turns, backward turns back; columns and tokens that it has no business with keep their
// bits.
TYPED_TEST(Rope, BothDirections) {
  using T = TypeParam;
  for (const Case& t : kCases) {
    SCOPED_TRACE(testing::Message() << t.batch << " x " << t.tokens << " x " << t.head_dim);
    for (const int sign : {1, -1}) {
      const Operands<T> in(t);
      std::vector<double> want, size;
      const int64_t half = t.head_dim / 2, cols = t.heads * t.head_dim + t.rest;
      for (int64_t i = 0; i < t.batch * t.tokens; ++i)
        for (int64_t c = 0; c < cols; ++c) {
          const int64_t patch = i % t.tokens - t.prefix, j = c % t.head_dim % half;
          const bool first = c % t.head_dim < half;
          const double x = in.x(i, c);
          if (patch < 0 || c >= t.heads * t.head_dim) {
            want.push_back(x);
            size.push_back(0);
            continue;
          }
          const double other = in.x(i, first ? c + half : c - half);
          const double s = sign * double(in.sin(patch, j));
          want.push_back(x * double(in.cos(patch, j)) + (first ? -other : other) * s);
          size.push_back(std::abs(x) + std::abs(other));
        }
      for_each_device<T>([&](const Queue& queue) {
        Operands<T> out(t), again(t);
        for (Operands<T>* o : {&out, &again}) {
          if (sign > 0)
            OF_RUN(queue, rope_forward,
                   orthofed::Rope<T>{.x = o->x.data(),
                                     .cos = o->cos.data(),
                                     .sin = o->sin.data(),
                                     .shape = o->shape});
          else
            OF_RUN(queue, rope_backward,
                   orthofed::Rope<T>{.x = o->x.data(),
                                     .cos = o->cos.data(),
                                     .sin = o->sin.data(),
                                     .shape = o->shape});
          finish(queue);
        }
        EXPECT_TRUE(close(out.x, want, [&](int64_t i, int64_t c) -> double {
          const auto at = size_t(i * cols + c);
          return size[at] == 0
                     ? 0
                     : 1.5 * epsilon<Accum<T>> * size[at] + 0.505 * epsilon<T> * std::abs(want[at]);
        }));
        EXPECT_TRUE(identical(out.x, again.x));
      });
    }
  }
}

TEST(RopeGradient, AgreesWithFiniteDifferences) {
  const Case t{2, 4, 1, 2, 6, 3};
  Operands<double> in(t);
  Buffer<double> weight(8, 15, 3), y(8, 15, 3);
  fill_normal(weight, 5);
  const auto loss = [&] {
    y = in.x;
    cpu::rope_forward(orthofed::Rope<double>{
        .x = y.data(), .cos = in.cos.data(), .sin = in.sin.data(), .shape = in.shape});
    return weighted_sum(y, weight);
  };
  Buffer<double> dx = weight;
  cpu::rope_backward(orthofed::Rope<double>{
      .x = dx.data(), .cos = in.cos.data(), .sin = in.sin.data(), .shape = in.shape});
  EXPECT_TRUE(check_gradient(loss, in.x, dx));
}

TEST(RopeContract, RefusesAnOddHead) {
  Operands<float> in({1, 2, 0, 1, 2, 3});
  in.shape.head_dim = 3;
  for_each_device<float>([&](const Queue& queue) {
    EXPECT_THROW(
        (OF_RUN(
            queue, rope_forward,
            orthofed::Rope<float>{
                .x = in.x.data(), .cos = in.cos.data(), .sin = in.sin.data(), .shape = in.shape})),
        Error);
  });
}

}  // namespace
}  // namespace orthofed::test
