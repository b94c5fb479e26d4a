// The two 8-bit floating-point formats of Hopper's tensor cores (Micikevicius et al., FP8 Formats
// for Deep Learning, arXiv 2209.05433): e4m3, one sign, four exponent, three mantissa bits, up to
// 448; e5m2, up to 57,344. Storage types like bf16.
//
// Conversion from float is that of cvt.rn.satfinite, as CUDA's __nv_fp8_e4m3 and __nv_fp8_e5m2 are
// constructed: to nearest even; beyond the largest finite number, infinity included, to that
// number; every NaN becomes 0x7f.
#pragma once
#include <bit>
#include <cstdint>
#include <type_traits>

#include "kernels/core/types.h"

namespace orthofed {

template <int kExponentBits>
struct Fp8 {
  static constexpr int kMantissaBits = 7 - kExponentBits;
  static constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  // e4m3 has no infinity, and its only NaN is all ones; e5m2 is as IEEE 754 would have it.
  static constexpr bool kInfinity = kExponentBits == 5;
  static constexpr uint8_t kLargest = kInfinity ? 0x7b : 0x7e, kNan = 0x7f;

  uint8_t bits;  // uninitialised like a float's
  Fp8() = default;
  constexpr Fp8(float f) : bits(round(f)) {}  // NOLINT: implicit like the built-in types

  // Exact.
  constexpr operator float() const {
    const uint32_t sign = uint32_t{bits & 0x80u} << 24;
    const uint32_t magnitude = bits & 0x7fu;
    if (magnitude > (kInfinity ? 0x7cu : 0x7eu)) return std::bit_cast<float>(0x7fffffffu);
    if (kInfinity && magnitude == 0x7cu) return std::bit_cast<float>(sign | 0x7f800000u);
    if (magnitude >> kMantissaBits == 0)  // subnormal: a multiple of the smallest
      return std::bit_cast<float>(
          sign | std::bit_cast<uint32_t>(static_cast<float>(magnitude) * smallest()));
    const uint32_t rebased = (magnitude << (23 - kMantissaBits)) + (uint32_t{127 - kBias} << 23);
    return std::bit_cast<float>(sign | rebased);
  }

 private:
  static constexpr float smallest() {  // 2^(1 - bias - mantissa bits)
    return std::bit_cast<float>(uint32_t{127 + 1 - kBias - kMantissaBits} << 23);
  }

  static constexpr uint8_t round(float f) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    if (!std::is_constant_evaluated()) {
      uint16_t pair;  // of f in the lower half and zero
      if constexpr (kExponentBits == 4)
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(f));
      else
        asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(f));
      return static_cast<uint8_t>(pair);
    }
#endif
    const uint32_t u = std::bit_cast<uint32_t>(f);
    const uint32_t sign = (u >> 24) & 0x80u;
    const uint32_t magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return kNan;
    constexpr int kDropped = 23 - kMantissaBits;
    constexpr uint32_t kSmallestNormal = uint32_t{127 + 1 - kBias} << 23;
    uint32_t rounded = 0;
    if (magnitude < kSmallestNormal) {
      // Adding a number whose last bit weighs as much as the smallest fp8 leaves the multiple of
      // that in the mantissa, rounded by the FPU.
      const float shift = smallest() * 0x1p23f;
      const float shifted = std::bit_cast<float>(magnitude) + shift;
      rounded = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(shift);
    } else {
      rounded = magnitude - (uint32_t{127 - kBias} << 23) + (1u << (kDropped - 1)) - 1 +
                ((magnitude >> kDropped) & 1u);
      rounded >>= kDropped;
    }
    return static_cast<uint8_t>(sign | (rounded < kLargest ? rounded : kLargest));
  }
};

using e4m3 = Fp8<4>;
using e5m2 = Fp8<5>;

// A tensor holds them as bytes.
template <int kExponentBits>
struct DTypeOf<Fp8<kExponentBits>> : DTypeOf<uint8_t> {};

}  // namespace orthofed
