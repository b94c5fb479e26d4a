#include "kernels/core/fp8.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

namespace orthofed {
namespace {

struct Format {
  int exponent_bits, mantissa_bits, bias;
  double largest;
};
template <class T>
constexpr Format format = {};
template <>
constexpr Format format<e4m3> = {4, 3, 7, 448};
template <>
constexpr Format format<e5m2> = {5, 2, 15, 57344};

// What 8 bits mean, by the definition of the format; NaN and infinity excepted.
template <class T>
double meaning(int bits) {
  const Format f = format<T>;
  const int exponent = bits >> f.mantissa_bits & ((1 << f.exponent_bits) - 1);
  const double fraction = std::ldexp(bits & ((1 << f.mantissa_bits) - 1), -f.mantissa_bits);
  const double size = exponent == 0 ? std::ldexp(fraction, 1 - f.bias)
                                    : std::ldexp(1 + fraction, exponent - f.bias);
  return bits & 0x80 ? -size : size;
}

// The nearest of all finite values, found by looking at them; of two, the one that is even.
template <class T>
class Nearest {
 public:
  Nearest() {
    for (int bits = 0; bits < 0x80; ++bits)
      if (meaning<T>(bits) <= format<T>.largest) values_.push_back(meaning<T>(bits));
  }
  int operator()(float x) const {
    if (std::isnan(x)) return 0x7f;
    const double size = std::abs(double(x));
    const auto above = std::lower_bound(values_.begin(), values_.end(), size);
    auto bits = int(above - values_.begin());
    if (above == values_.end()) {
      bits = int(values_.size()) - 1;
    } else if (bits > 0) {
      const double down = size - values_[size_t(bits - 1)], up = *above - size;
      if (down < up || (down == up && bits % 2 == 1)) --bits;
    }
    return bits | (std::signbit(x) ? 0x80 : 0);
  }

 private:
  std::vector<double> values_;  // ascending, as their bits are
};

template <class T>
class Fp8Test : public testing::Test {};
using Formats = testing::Types<e4m3, e5m2>;
TYPED_TEST_SUITE(Fp8Test, Formats);

TYPED_TEST(Fp8Test, MeansWhatTheFormatSays) {
  for (int bits = 0; bits < 256; ++bits) {
    TypeParam x;
    x.bits = uint8_t(bits);
    const int magnitude = bits & 0x7f;
    const bool infinite = std::is_same_v<TypeParam, e5m2> && magnitude == 0x7c;
    const bool nan = !infinite && meaning<TypeParam>(magnitude) > format<TypeParam>.largest;
    const auto value = float(x);
    EXPECT_EQ(std::isnan(value), nan) << bits;
    if (nan) continue;
    EXPECT_EQ(std::signbit(value), bits >= 0x80);
    EXPECT_EQ(double(value),
              infinite ? (bits >= 0x80 ? -1 : 1) * HUGE_VAL : meaning<TypeParam>(bits))
        << bits;
    // There and back: infinity saturates.
    EXPECT_EQ(TypeParam(value).bits, infinite ? bits - 1 : bits);
  }
}

// All 2^16 upper halves of a float. fp8 values and the ties between them have at most four bits of
// mantissa, so that of the lower half it only matters whether it is zero.
TYPED_TEST(Fp8Test, RoundsToNearestEvenAndSaturates) {
  const Nearest<TypeParam> nearest;
  int64_t wrong = 0;
  for (uint32_t upper = 0; upper < 0x10000; ++upper)
    for (const uint32_t lower : {0u, 1u, 0x8000u, 0xffffu}) {
      const auto x = std::bit_cast<float>(upper << 16 | lower);
      const int want = nearest(x);
      if (TypeParam(x).bits == want) continue;
      if (++wrong < 10)
        ADD_FAILURE() << x << ": got " << int(TypeParam(x).bits) << ", want " << want;
    }
  EXPECT_EQ(wrong, 0);
}

TEST(Fp8, KnownValues) {
  EXPECT_EQ(e4m3(448.0f).bits, 0x7e);
  EXPECT_EQ(e4m3(1e9f).bits, 0x7e);
  EXPECT_EQ(e4m3(-std::numeric_limits<float>::infinity()).bits, 0xfe);
  EXPECT_EQ(e4m3(0x1p-9f).bits, 0x01);   // the smallest
  EXPECT_EQ(e4m3(0x1p-10f).bits, 0x00);  // half of it: to even
  EXPECT_EQ(e4m3(1.0625f).bits, 0x38);   // between 1 and 1.125
  EXPECT_EQ(e4m3(1.1875f).bits, 0x3a);   // between 1.125 and 1.25
  EXPECT_EQ(e5m2(57344.0f).bits, 0x7b);
  EXPECT_EQ(e5m2(-61440.0f).bits, 0xfb);  // would round to infinity
  EXPECT_EQ(e5m2(0x1p-16f).bits, 0x01);
  EXPECT_EQ(e5m2(-0.0f).bits, 0x80);
}

}  // namespace
}  // namespace orthofed
