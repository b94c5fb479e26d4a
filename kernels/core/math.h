// Elementary functions are branch-free polynomials here: loops over them vectorise (calls of libm
// do not, without -ffast-math), and CPU and CUDA compute the same thing. In double they are libm's,
// for gradient checks.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/core/host_device.h"

namespace orthofed {

// exp: x = n ln2 + f with |f| <= ln2/2, e^f by a degree-6 polynomial, times 2^n. Error below 2 ulp
// on [-87.3, 88.3]. Nothing is selected at the ends, because selects cost as much as the
// polynomial: n = -127 makes the bits of 2^n those of 0, n = 128 (x above 88.37) those of infinity,
// and x is clamped to where n is one of them. NaN stays NaN.
OF_HOST_DEVICE inline float exp_(float x) {
  const float clamped = x < -88.0f ? -88.0f : (x > 89.0f ? 89.0f : x);
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
  return p * std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127) << 23);
}
OF_HOST_DEVICE inline double exp_(double x) {
  return std::exp(x);
}

// Phi, the distribution function of the normal distribution, given e = e^(-x^2/2), which its
// derivative needs as well: Phi(-a) = e P(a)/Q(a) for a >= 0 (Mills' ratio over sqrt(2 pi), a
// minimax fit, relative error 5.6e-9 up to 14, where e is 0), and 1 - Phi(-a) on the other side.
// All coefficients are positive, so nothing cancels. Errs by less than 3 2^-24, in the left tail by
// less than (6 + x^2) 2^-24 Phi(x), most of it e's; 0 and 1 where e is 0; NaN stays NaN.
OF_HOST_DEVICE inline float normal_cdf_(float x, float e) {
  const float b = std::fabs(x), a = b > 14.0f ? 14.0f : b;
  float p = 4.0776436e-3f;
  p = p * a + 4.0372810e-2f;
  p = p * a + 1.8246265e-1f;
  p = p * a + 4.3725207e-1f;
  p = p * a + 0.5f;
  float q = 1.0221008e-2f;
  q = q * a + 1.0120644e-1f;
  q = q * a + 4.6743122e-1f;
  q = q * a + 1.1992942f;
  q = q * a + 1.6723891f;
  q = q * a + 1.0f;
  const float tail = e * p / q;
  return x < 0.0f ? tail : 1.0f - tail;
}
OF_HOST_DEVICE inline double normal_cdf_(double x, double) {
  return 0.5 * std::erfc(-0.70710678118654752440 * x);  // 1/sqrt(2)
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
