// Elementary functions, storage types, Philox and the instruction-set clones.
#include "kernels/core/math.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/philox.h"
#include "kernels/core/types.h"
#include "tests/support/compare.h"
#include "tests/support/isa.h"

namespace orthofed::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Distance to the true value in units of the last place of the float next to it.
double ulps(float got, double want) {
  if (double(got) == want) return 0;
  const float near = std::abs(float(want));
  const double unit = double(std::nextafter(near, kInf)) - double(near);
  return std::abs(double(got) - want) / unit;
}

struct Function {
  const char* name;
  void (*row)(const float* x, float* y, int64_t n);  // as kernels call it: a loop that is cloned
  double (*exact)(double);
  float low, high;  // where the ulp bound holds
  double bound;     // ulp
};

template <class F>
void map_row(const float* x, float* y, int64_t n, F f) {
  cpu::parallel_for(n, 4096, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) y[i] = f(x[i]);
  });
}
void exp_row(const float* x, float* y, int64_t n) {
  map_row(x, y, n, [](float v) { return exp_(v); });
}
void tanh_row(const float* x, float* y, int64_t n) {
  map_row(x, y, n, [](float v) { return tanh_(v); });
}
const Function kFunctions[] = {
    {"exp_", exp_row, [](double v) { return std::exp(v); }, -87.336544f, 88.37f, 2},
    {"tanh_", tanh_row, [](double v) { return std::tanh(v); }, -kInf, kInf, 2},
};

// Every 997th float of all 2^32, subnormals and NaNs included.
std::vector<float> sweep() {
  std::vector<float> x;
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 997)
    x.push_back(std::bit_cast<float>(uint32_t(bits)));
  return x;
}

TEST(Math, ErrorOverTheFloatRange) {
  const std::vector<float> x = sweep();
  std::vector<float> y(x.size());
  for (const Function& f : kFunctions) {
    SCOPED_TRACE(f.name);
    for_each_isa([&] {
      f.row(x.data(), y.data(), int64_t(x.size()));
      double worst = 0;
      float worst_x = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        if (std::isnan(x[i])) {
          ASSERT_TRUE(std::isnan(y[i]));
          continue;
        }
        if (x[i] < f.low || x[i] > f.high) continue;
        const double error = ulps(y[i], f.exact(double(x[i])));
        ASSERT_FALSE(std::isnan(error)) << x[i];
        if (error > worst) {
          worst = error;
          worst_x = x[i];
        }
      }
      std::printf("%-6s %-10s worst %.3f ulp at %.9g\n", f.name, cpu::name_of(cpu::isa()), worst,
                  double(worst_x));
      EXPECT_TRUE(worst <= f.bound) << worst << " ulp at " << worst_x;
    });
  }
}

// Contraction to fused multiply-adds differs between levels; the values stay within both errors.
TEST(Math, InstructionSetsAgree) {
  const std::vector<float> x = sweep();
  for (const Function& f : kFunctions) {
    SCOPED_TRACE(f.name);
    std::vector<float> first(x.size()), y(x.size());
    for_each_isa([&] {
      f.row(x.data(), y.data(), int64_t(x.size()));
      if (cpu::isa() == available_isas().front()) first = y;
      for (size_t i = 0; i < x.size(); ++i) {
        if (std::isnan(x[i])) continue;
        ASSERT_TRUE(ulps(y[i], double(first[i])) <= 2 * f.bound) << x[i];
      }
    });
  }
}

// The bound of math.h: absolute on the right, and relative in the left tail, where e^(-x^2/2) errs
// by the rounding of its argument. Below, e underflows and with it the result.
TEST(Math, NormalDistribution) {
  const std::vector<float> x = sweep();
  std::vector<float> y(x.size());
  const double most = 3 * std::exp2(-24);
  for_each_isa([&] {
    map_row(x.data(), y.data(), int64_t(x.size()),
            [](float v) { return normal_cdf_(v, exp_(-0.5f * v * v)); });
    double worst = 0;  // of the bound
    for (size_t i = 0; i < x.size(); ++i) {
      if (std::isnan(x[i])) {
        ASSERT_TRUE(std::isnan(y[i]));
        continue;
      }
      const double v = double(x[i]), exact = 0.5 * std::erfc(-std::sqrt(0.5) * v);
      const double bound =
          std::min(most, (6 + v * v) * std::exp2(-24) * exact + 2 * std::exp2(-126));
      worst = std::max(worst, std::abs(double(y[i]) - exact) / (v < 0 ? bound : most));
    }
    std::printf("%-10s worst %.3f of the bound\n", cpu::name_of(cpu::isa()), worst);
    EXPECT_TRUE(worst <= 1);
  });
}

TEST(Math, SpecialValues) {
  EXPECT_EQ(exp_(0.0f), 1.0f);
  EXPECT_EQ(exp_(kInf), kInf);
  EXPECT_EQ(exp_(89.0f), kInf);
  EXPECT_EQ(exp_(-kInf), 0.0f);
  EXPECT_EQ(exp_(-88.0f), 0.0f);
  EXPECT_EQ(tanh_(kInf), 1.0f);
  EXPECT_EQ(tanh_(-kInf), -1.0f);
  EXPECT_EQ(tanh_(20.0f), 1.0f);
  EXPECT_EQ(tanh_(0.0f), 0.0f);
  for (float v : {1e-40f, 0.3f, 0.7f, 2.5f}) EXPECT_EQ(tanh_(-v), -tanh_(v));
  EXPECT_EQ(normal_cdf_(0.0f, 1.0f), 0.5f);
  EXPECT_EQ(normal_cdf_(kInf, 0.0f), 1.0f);
  EXPECT_EQ(normal_cdf_(-kInf, 0.0f), 0.0f);
  EXPECT_EQ(exp_(1.5), std::exp(1.5));
  EXPECT_EQ(normal_cdf_(-0.3, 0.0), 0.5 * std::erfc(0.70710678118654752440 * 0.3));
  EXPECT_EQ(tanh_(0.3), std::tanh(0.3));
}

TEST(Bf16, EveryPatternSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float wide = std::bit_cast<float>(bits << 16);
    const bf16 back(wide);
    if (std::isnan(wide))
      EXPECT_TRUE(std::isnan(float(back))) << bits;
    else
      EXPECT_EQ(back.bits, bits);
  }
}

TEST(Bf16, RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7f80; ++bits) {  // positive and finite
    for (uint32_t sign : {0u, 0x8000u}) {
      const uint32_t down = bits | sign, up = down + 1, tie = (down << 16) | 0x8000u;
      ASSERT_EQ(bf16(std::bit_cast<float>(tie - 1)).bits, down);
      ASSERT_EQ(bf16(std::bit_cast<float>(tie)).bits, bits % 2 == 0 ? down : up);
      ASSERT_EQ(bf16(std::bit_cast<float>(tie + 1)).bits, up);  // beyond the largest: infinity
    }
  }
}

// The value of a half by its definition.
double half_value(uint32_t bits) {
  const int exponent = int((bits >> 10) & 31), mantissa = int(bits & 1023);
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return (bits & 0x8000u) != 0 ? -magnitude : magnitude;
}

f16 half_of(uint32_t bits) {
  f16 h;
  h.bits = uint16_t(bits);
  return h;
}

TEST(F16, EveryPatternHasItsValueAndSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float wide = half_of(bits);
    if ((bits & 0x7c00u) == 0x7c00u && (bits & 0x3ffu) != 0) {
      ASSERT_TRUE(std::isnan(wide)) << bits;
      ASSERT_TRUE(std::isnan(float(f16(wide)))) << bits;
    } else {
      const bool infinite = (bits & 0x7fffu) == 0x7c00u;
      ASSERT_EQ(double(wide), infinite ? (bits == 0x7c00u ? kInf : -kInf) : half_value(bits));
      ASSERT_EQ(f16(wide).bits, bits);
    }
  }
}

TEST(F16, RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    for (uint32_t sign : {0u, 0x8000u}) {
      const uint32_t down = bits | sign, up = down + 1;
      // half_value(0x7c00) is 65536, the value beyond the largest: from its tie on, infinity.
      const float tie = float((half_value(down) + half_value(up)) / 2);
      ASSERT_EQ(f16(std::nextafter(tie, 0.0f)).bits, down) << bits;
      ASSERT_EQ(f16(tie).bits, bits % 2 == 0 ? down : up) << bits;
      ASSERT_EQ(f16(std::nextafter(tie, sign != 0 ? -kInf : kInf)).bits, up) << bits;
    }
  }
}

// kat_vectors of Random123 (D. E. Shaw Research), philox4x32 with 10 rounds.
TEST(Philox, PublishedVectors) {
  using Block = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox{0}(0, 0), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox{~uint64_t{0}}(~uint64_t{0}, ~uint64_t{0}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox{0x299f31d0a4093822}(0x85a308d3243f6a88, 0x0370734413198a2e),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, KeysAreDistinctStreams) {
  const auto key = [](auto&&... words) {
    PhiloxKey k(1);
    (k.with(words), ...);
    return Philox(k).key;
  };
  EXPECT_NE(key("general"), key("personal"));
  EXPECT_NE(key("ab", "c"), key("a", "bc"));
  EXPECT_NE(key(uint64_t{1}, uint64_t{2}), key(uint64_t{2}, uint64_t{1}));
  EXPECT_EQ(key("general", uint64_t{3}), key("general", uint64_t{3}));
}

TEST(Philox, UniformAndNormalHaveTheirMoments) {
  const Philox rng = PhiloxKey(7);
  constexpr int n = 200000;
  double u1 = 0, u2 = 0, n1 = 0, n2 = 0, n4 = 0;
  for (uint64_t i = 0; i < n; ++i) {
    const double u = uniform01(rng(i)[1]), z = normal(rng, i);
    ASSERT_TRUE(u >= 0 && u < 1);
    u1 += u / n;
    u2 += u * u / n;
    n1 += z / n;
    n2 += z * z / n;
    n4 += z * z * z * z / n;
  }
  // Five standard deviations of each estimate.
  EXPECT_NEAR(u1, 0.5, 5 * std::sqrt(1.0 / 12 / n));
  EXPECT_NEAR(u2, 1.0 / 3, 5 * std::sqrt(4.0 / 45 / n));
  EXPECT_NEAR(n1, 0, 5 * std::sqrt(1.0 / n));
  EXPECT_NEAR(n2, 1, 5 * std::sqrt(2.0 / n));
  EXPECT_NEAR(n4, 3, 5 * std::sqrt(96.0 / n));
  EXPECT_EQ(uniform01(0xffffffffu), 1 - 0x1p-24f);
}

TEST(Isa, RefusesALevelTheProcessorLacks) {
  if (cpu::best_isa() == cpu::Isa::v4) GTEST_SKIP() << "this processor has every level";
  const cpu::Isa before = cpu::isa();
  EXPECT_THROW(cpu::force_isa(cpu::Isa::v4), UserError);
  EXPECT_EQ(cpu::isa(), before);
}

}  // namespace
}  // namespace orthofed::test
