// Elementary functions as branch-free polynomials: loops over them vectorise (libm calls do not,
// without -ffast-math), and CPU and CUDA compute the same thing. In double they are libm's, for
// gradient checks.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/core/host_device.h"

namespace orthofed {

// exp: x = n ln2 + f with |f| <= ln2/2, e^f by a degree-6 polynomial. Error below 2 ulp on
// [-87.3, 88.7]; below it underflows to 0, above it is infinite, NaN stays NaN.
OF_HOST_DEVICE inline float exp_(float x) {
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
OF_HOST_DEVICE inline double exp_(double x) {
  return std::exp(x);
}

// erf: x + x P(x^2) below 0.93; above, 1 - e^(-x Q(x)), where the exponential is below 0.19 and its
// error shrinks with it. P and Q are minimax fits (relative error of erf 1.7e-8 and 3.1e-9); beyond
// 4 erf is 1 in float. Error below 2 ulp everywhere, odd, NaN stays NaN.
OF_HOST_DEVICE inline float erf_(float x) {
  const float a = std::fabs(x), s = x * x;
  float p = -5.953741847e-4f;
  p = p * s + 4.985940634e-3f;
  p = p * s - 2.676171990e-2f;
  p = p * s + 1.128168254e-1f;
  p = p * s - 3.761248110e-1f;
  p = p * s + 1.283791477e-1f;
  const float inner = x * p + x;
  const float t = a > 4.0f ? 4.0f : a;
  float q = -2.145949065e-4f;
  q = q * t + 3.219974615e-3f;
  q = q * t - 2.290602854e-2f;
  q = q * t + 1.052868509e-1f;
  q = q * t + 6.356993708e-1f;
  q = q * t + 1.128519952f;
  const float outer = std::copysign(1.0f - exp_(-t * q), x);
  return a < 0.93f ? inner : outer;
}
OF_HOST_DEVICE inline double erf_(double x) {
  return std::erf(x);
}

// tanh: x + x^3 P(x^2) below 0.625 (minimax, relative error 4.4e-9); above, 1 - 2/(e^2x + 1), which
// needs no clamp: an infinite exponential gives 1. Error below 2 ulp everywhere, odd, NaN stays
// NaN.
OF_HOST_DEVICE inline float tanh_(float x) {
  const float a = std::fabs(x), s = x * x;
  float p = -5.708790492e-3f;
  p = p * s + 2.064235160e-2f;
  p = p * s - 5.374066953e-2f;
  p = p * s + 1.333145303e-1f;
  p = p * s - 3.333328232e-1f;
  const float inner = x * s * p + x;
  const float outer = std::copysign(1.0f - 2.0f / (exp_(2.0f * a) + 1.0f), x);
  return a < 0.625f ? inner : outer;
}
OF_HOST_DEVICE inline double tanh_(double x) {
  return std::tanh(x);
}

}  // namespace orthofed
