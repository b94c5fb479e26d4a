// Elementary functions as branch-free polynomials: loops over them vectorise (libm calls do not,
// without -ffast-math), and CPU and CUDA compute the same thing. In double they are libm's, for
// gradient checks.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

namespace orthofed {

// exp: x = n ln2 + f with |f| <= ln2/2, e^f by a degree-6 polynomial. Error below 2 ulp on
// [-87.3, 88.7]; below it underflows to 0, above it is infinite, NaN stays NaN.
inline float exp_(float x) {
  const float clamped = x < -87.336544f ? -87.336544f : (x > 88.722839f ? 88.722839f : x);
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = clamped * 1.44269504088896f + magic;
  const float n = shifted - magic;
  const float f = (clamped - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;
  float p = 1.9875691500e-4f;
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  // Two factors of 2^(n/2), so that n = 128 does not overflow before the product does.
  const int32_t i = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(magic);
  const int32_t half = i >> 1;
  const float s1 = std::bit_cast<float>((half + 127) << 23);
  const float s2 = std::bit_cast<float>((i - half + 127) << 23);
  const float y = p * s1 * s2;
  return x < -87.336544f ? 0.0f : (x > 88.722839f ? INFINITY : y);
}
inline double exp_(double x) {
  return std::exp(x);
}

}  // namespace orthofed
