// How alike two vectors or matrices are, from their inner product and squared norms: the function
// that every penalty is made of, for the CPU and for kernels.
#pragma once
#include <cmath>

#include "kernels/core/host_device.h"
#include "kernels/orthogonality/orthogonality.h"

namespace orthofed {

inline constexpr double kSmallestDenominator = 1e-30;

// f(<X, Y>, |X|^2, |Y|^2) and its three partial derivatives.
struct Similarity {
  double value = 0, d_inner = 0, d_norm_x = 0, d_norm_y = 0;
};

// cosine2: z^2 / (nx ny);  abs_cosine: |z| / sqrt(nx ny);  raw2: z^2. A vanishing denominator gives
// zeros; NaN is not <= and passes through.
OF_HOST_DEVICE inline Similarity similarity(double z, double nx, double ny, PenaltyForm form) {
  if (form == PenaltyForm::raw2) return {z * z, 2 * z, 0, 0};
  const double denominator = nx * ny;
  if (denominator <= kSmallestDenominator) return {};
  if (form == PenaltyForm::cosine2) {
    const double value = z * z / denominator;
    return {value, 2 * z / denominator, -value / nx, -value / ny};
  }
  const double root = std::sqrt(denominator), value = std::fabs(z) / root;
  const double sign = z > 0 ? 1 : z < 0 ? -1 : 0;
  return {value, sign / root, -value / (2 * nx), -value / (2 * ny)};
}

}  // namespace orthofed
