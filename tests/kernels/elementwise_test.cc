#include "kernels/elementwise/elementwise.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/elementwise/elementwise_types.h"
#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/random.h"

namespace orthofed::test {
namespace {

struct Shape {
  int64_t rows, cols, padding;
};
// Pitches that packs can use and others; rows that end within a pack.
constexpr Shape kShapes[] = {{0, 4, 0}, {1, 1, 0}, {2, 15, 1}, {9, 13, 3}, {3, 32, 0}, {5, 260, 4}};
constexpr DType kTypes[] = {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i32, DType::u8};

template <class F>
void with_types(DType from, DType to, F&& f) {
  with_type(from, [&]<class From>(std::type_identity<From>) {
    with_type(to, [&]<class To>(std::type_identity<To>) {
      SCOPED_TRACE(std::string(name_of(from)) + " to " + name_of(to));
      f(std::type_identity<From>{}, std::type_identity<To>{});
    });
  });
}

template <class From, class To>
void cast(const Queue& queue, const Buffer<From>& x, Buffer<To>& y) {
  OF_RUN(queue, cast,
         Cast{.x = x.data(),
              .x_type = DTypeOf<From>::value,
              .ldx = x.ld(),
              .y = y.data(),
              .y_type = DTypeOf<To>::value,
              .ldy = y.ld(),
              .rows = x.rows(),
              .cols = x.cols()});
  finish(queue);
}

// What a cast of x must give, and by how much it may miss that.
template <class To>
struct Expected {
  double value, error;
};
template <class To>
Expected<To> expected(double x) {
  if constexpr (std::is_integral_v<To>) {
    if (std::isnan(x)) return {0, 0};
    const double low = double(std::numeric_limits<To>::min()),
                 high = double(std::numeric_limits<To>::max());
    return {std::clamp(std::trunc(x), low, high), 0};
  } else {
    const double largest = std::is_same_v<To, f16> ? 65504.0 : 3.3895313892515355e38;  // f16, bf16
    const double smallest = std::is_same_v<To, f16> ? 0x1p-24 : 0x1p-133;
    if (sizeof(To) == 2 && std::abs(x) > largest * (1 + epsilon<To> / 4))
      return {std::copysign(std::numeric_limits<double>::infinity(), x), 0};
    return {x, 0.5001 * std::max(epsilon<To> * std::abs(x), sizeof(To) == 2 ? smallest : 0x1p-149)};
  }
}

TEST(Cast, RoundsBetweenAllTypesAndGivesTheSameBitsEverywhere) {
  for (const DType from : kTypes)
    for (const DType to : kTypes)
      with_types(
          from, to, []<class From, class To>(std::type_identity<From>, std::type_identity<To>) {
            for (const Shape s : kShapes) {
              SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols);
              Buffer<From> x(s.rows, s.cols, s.padding);
              Buffer<double> wide(s.rows, s.cols);
              fill_uniform(wide, 1, std::is_same_v<From, uint8_t> ? 0 : -300, 256);
              for (int64_t i = 0; i < s.rows; ++i)
                for (int64_t j = 0; j < s.cols; ++j) x(i, j) = From(float(wide(i, j)));
              Buffer<To> y(s.rows, s.cols, s.padding);
              cast(Queue{}, x, y);
              EXPECT_TRUE(y.verify());
              for (int64_t i = 0; i < s.rows; ++i)
                for (int64_t j = 0; j < s.cols; ++j) {
                  const auto value = double(x(i, j)), got = double(y(i, j));
                  if constexpr (std::is_integral_v<From> && std::is_integral_v<To>) {
                    ASSERT_EQ(y(i, j), To(x(i, j)));
                  } else {
                    const Expected<To> want = expected<To>(value);
                    ASSERT_TRUE(std::abs(got - want.value) <= want.error) << value << " " << got;
                  }
                }
              for_each_device<>([&](const Queue& queue) {
                Buffer<To> again(s.rows, s.cols, s.padding + 1);
                cast(queue, x, again);
                EXPECT_TRUE(identical(y, again));
                EXPECT_TRUE(again.verify());
              });
            }
          });
}

TEST(Cast, KeepsSpecialNumbers) {
  const double inf = std::numeric_limits<double>::infinity();
  const double values[] = {
      0.0,    -0.0,      inf,     -inf,       double(NAN),  65504,         65519,    65520,
      -70000, 3.4028e38, 0x1p-24, 0x1p-25,    0x1.8p-25,    0x1p-133,      0x1p-149, 255.9,
      -0.9,   256,       -1,      2147483520, 2147483648.0, -2147483648.0, 1e30,     16777217};
  constexpr int64_t kCount = std::size(values);
  for (const DType from : {DType::f64, DType::f32, DType::bf16, DType::f16})
    for (const DType to : kTypes)
      with_types(from, to,
                 [&]<class From, class To>(std::type_identity<From>, std::type_identity<To>) {
                   Buffer<From> x(1, kCount);
                   for (int64_t j = 0; j < kCount; ++j)
                     x(0, j) = orthofed::convert<From>(values[j]);
                   for_each_device<>([&](const Queue& queue) {
                     Buffer<To> y(1, kCount);
                     cast(queue, x, y);
                     for (int64_t j = 0; j < kCount; ++j) {
                       const auto value = double(x(0, j)), got = double(y(0, j));
                       SCOPED_TRACE(value);
                       const Expected<To> want = expected<To>(value);
                       if (std::isnan(want.value)) {
                         EXPECT_TRUE(std::isnan(got));
                       } else if (std::isinf(want.value)) {
                         EXPECT_EQ(got, want.value);
                       } else {
                         EXPECT_TRUE(std::abs(got - want.value) <= want.error) << got;
                         if constexpr (!std::is_integral_v<To>) {
                           EXPECT_EQ(std::signbit(got), std::signbit(value));
                         }
                       }
                     }
                   });
                 });
}

// Every half there is: to float and back is the identity, and float is what its definition says.
TEST(Cast, AllHalvesGoToFloatAndBack) {
  Buffer<f16> halves(256, 256), back(256, 256);
  Buffer<float> floats(256, 256);
  for (int i = 0; i < 256; ++i)
    for (int j = 0; j < 256; ++j) halves(i, j).bits = uint16_t(256 * i + j);
  for_each_device<>([&](const Queue& queue) {
    cast(queue, halves, floats);
    cast(queue, floats, back);
    for (int i = 0; i < 256; ++i)
      for (int j = 0; j < 256; ++j) {
        const unsigned bits = halves(i, j).bits;
        const int exponent = int(bits >> 10 & 31), mantissa = int(bits & 1023);
        if (exponent == 31 && mantissa != 0) {
          ASSERT_TRUE(std::isnan(floats(i, j)));
          ASSERT_EQ(back(i, j).bits, 0x7fff);
          continue;
        }
        const double size = exponent == 31  ? std::numeric_limits<double>::infinity()
                            : exponent == 0 ? std::ldexp(mantissa, -24)
                                            : std::ldexp(1024 + mantissa, exponent - 25);
        ASSERT_EQ(double(floats(i, j)), bits >> 15 != 0 ? -size : size);
        ASSERT_EQ(back(i, j).bits, bits);
      }
  });
}

TEST(Fill, SetsEveryElement) {
  for (const DType type : kTypes)
    with_type(type, [&]<class T>(std::type_identity<T>) {
      SCOPED_TRACE(name_of(type));
      for_each_device<>([&](const Queue& queue) {
        for (const Shape s : kShapes) {
          Buffer<T> y(s.rows, s.cols, s.padding);
          OF_RUN(queue, fill,
                 Fill{.value = 3.0,
                      .y = y.data(),
                      .type = type,
                      .ldy = y.ld(),
                      .rows = s.rows,
                      .cols = s.cols});
          finish(queue);
          EXPECT_TRUE(close(y, std::vector<double>(size_t(s.rows * s.cols), 3.0), Budget{}));
        }
      });
    });
}

TEST(AllFinite, FindsOneNumberThatIsNot) {
  for (const DType type : kTypes)
    with_type(type, [&]<class T>(std::type_identity<T>) {
      SCOPED_TRACE(name_of(type));
      for_each_device<>([&](const Queue& queue) {
        for (const Shape s : kShapes) {
          SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols);
          Buffer<T> x(s.rows, s.cols, s.padding);
          Buffer<int32_t> finite(1, 1);
          const auto ask = [&] {
            OF_RUN(queue, all_finite,
                   AllFinite{.x = x.data(),
                             .type = type,
                             .ldx = x.ld(),
                             .finite = finite.data(),
                             .rows = s.rows,
                             .cols = s.cols});
            finish(queue);
            EXPECT_TRUE(finite.verify());
            return finite(0, 0);
          };
          x.fill(T(7));
          EXPECT_EQ(ask(), 1);
          if constexpr (!std::is_integral_v<T>) {
            if (s.rows == 0) continue;
            for (const float bad : {float(NAN), float(INFINITY), float(-INFINITY)}) {
              for (const auto& [i, j] :
                   {std::pair(int64_t{0}, int64_t{0}), std::pair(s.rows - 1, s.cols - 1)}) {
                x(i, j) = T(bad);
                EXPECT_EQ(ask(), 0);
                x(i, j) = T(7);
              }
            }
          }
        }
      });
    });
}

template <class T>
class Elementwise : public testing::Test {
 protected:
  static constexpr Budget kBudget{0.505 * (epsilon<Accum<T>> + epsilon<T>), 0};
};
using Types = testing::Types<double, float, bf16>;
TYPED_TEST_SUITE(Elementwise, Types);

TYPED_TEST(Elementwise, Add) {
  using T = TypeParam;
  for_each_device<T>([](const Queue& queue) {
    for (const Shape s : kShapes) {
      SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols);
      Buffer<T> x(s.rows, s.cols, s.padding), y(s.rows, s.cols, s.padding + 4);
      fill_normal(x, 1);
      fill_normal(y, 2);
      Buffer<T> again = y;
      std::vector<double> want, doubled = x.to_double();
      for (int64_t i = 0; i < s.rows; ++i)
        for (int64_t j = 0; j < s.cols; ++j) want.push_back(double(x(i, j)) + double(y(i, j)));
      for (double& v : doubled) v *= 2;
      const auto add_to = [&](const Buffer<T>& from, Buffer<T>& to) {
        OF_RUN(queue, add,
               Add<T>{.x = from.data(),
                      .ldx = from.ld(),
                      .y = to.data(),
                      .ldy = to.ld(),
                      .rows = s.rows,
                      .cols = s.cols});
        finish(queue);
      };
      add_to(x, y);
      EXPECT_TRUE(close(y, want, TestFixture::kBudget));
      add_to(x, again);
      EXPECT_TRUE(identical(y, again));
      add_to(x, x);
      EXPECT_TRUE(close(x, doubled, Budget{}));
    }
  });
}

TYPED_TEST(Elementwise, Scale) {
  using T = TypeParam;
  for_each_device<T>([](const Queue& queue) {
    for (const Shape s : kShapes) {
      SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols);
      Buffer<T> y(s.rows, s.cols, s.padding);
      fill_normal(y, 1);
      Buffer<T> again = y;
      Buffer<Accum<T>> factor(1, 1);
      factor(0, 0) = Accum<T>(-1.7);
      std::vector<double> want = y.to_double();
      for (double& v : want) v *= double(factor(0, 0));
      for (Buffer<T>* b : {&y, &again}) {
        OF_RUN(queue, scale,
               Scale<T>{.factor = factor.data(),
                        .y = b->data(),
                        .ldy = b->ld(),
                        .rows = s.rows,
                        .cols = s.cols});
        finish(queue);
      }
      EXPECT_TRUE(close(y, want, TestFixture::kBudget));
      EXPECT_TRUE(identical(y, again));
    }
  });
}

}  // namespace
}  // namespace orthofed::test
