// Element types. bf16 and f16 are storage types: every kernel computes in Accum<T>.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace orthofed {

enum class DType : uint8_t { f64, f32, bf16, f16, i32, u8 };

constexpr size_t size_of(DType t) {
  switch (t) {
    case DType::f64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::u8:
      return 1;
  }
  return 0;
}

constexpr const char* name_of(DType t) {
  switch (t) {
    case DType::f64:
      return "f64";
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::f16:
      return "f16";
    case DType::i32:
      return "i32";
    case DType::u8:
      return "u8";
  }
  return "?";
}

// bfloat16: the upper half of a float. Conversion rounds to nearest even; every NaN becomes 0x7fff,
// as the GPU's conversion instruction makes it.
struct bf16 {
  uint16_t bits;  // uninitialised like a float's: shared memory holds no constructors
  bf16() = default;
  constexpr bf16(float f) : bits(round(f)) {}  // NOLINT: implicit like the built-in types
  constexpr operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }

 private:
  static constexpr uint16_t round(float f) {
#ifdef __CUDA_ARCH__
    if (!std::is_constant_evaluated()) {
      uint16_t result;
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result) : "f"(f));
      return result;
    }
#endif
    const uint32_t u = std::bit_cast<uint32_t>(f);
    const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    return static_cast<uint16_t>(nan ? 0x7fffu : rounded);
  }
};

// IEEE half, as files hold it; no kernel computes in it. Rounds to nearest even; every NaN becomes
// 0x7fff, as the GPU's conversion instruction makes it.
struct f16 {
  uint16_t bits;
  f16() = default;
  constexpr f16(float f) : bits(round(f)) {}  // NOLINT
  constexpr operator float() const {
    const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
    const uint32_t magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u)
      return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
    if (magnitude >= 0x400u) return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
    return std::bit_cast<float>(sign |
                                std::bit_cast<uint32_t>(static_cast<float>(magnitude) * 0x1p-24f));
  }

 private:
  static constexpr uint16_t round(float f) {
    const uint32_t u = std::bit_cast<uint32_t>(f);
    const uint32_t sign = (u >> 16) & 0x8000u;
    const uint32_t magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fffu;                                 // NaN
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // to infinity
    if (magnitude < 0x38800000u) {
      // Subnormal: adding 0.5 moves the bits to the bottom of the mantissa, and the FPU rounds.
      const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
      return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
    }
    const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | (rounded >> 13));
  }
};

// The spacing of T's values at 1. Rounding to T errs by at most half of it, relatively.
template <class T>
inline constexpr double epsilon = std::numeric_limits<T>::epsilon();
template <>
inline constexpr double epsilon<bf16> = 0x1p-7;
template <>
inline constexpr double epsilon<f16> = 0x1p-10;

// The type a kernel computes and accumulates in, and the type of the residual stream.
template <class T>
struct AccumOf {
  using type = float;
};
template <>
struct AccumOf<double> {
  using type = double;
};
template <class T>
using Accum = typename AccumOf<T>::type;

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<f16> {
  static constexpr DType value = DType::f16;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::u8;
};

}  // namespace orthofed
