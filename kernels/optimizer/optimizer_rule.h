// One element's step, shared by CPU and GPU. The numbers that are the same for all elements of a
// tensor are worked out in double, once, and rounded to T.
#pragma once
#include <cmath>
#include <cstdint>

#include "kernels/core/host_device.h"
#include "kernels/optimizer/optimizer.h"

namespace orthofed {

// 1 - beta^step, by repeated squaring: products alone, so that every device gets the same power. It
// errs by at most step beta^step 2^-53 < 2^-53 / (1 - beta).
OF_HOST_DEVICE inline double bias_correction(double beta, int64_t step) {
  double power = 1;
  for (double factor = beta; step > 0; step /= 2, factor *= factor)
    if (step % 2 != 0) power *= factor;
  return 1 - power;
}

template <class T>
struct AdamWRule {
  static constexpr bool kSecondMoment = true;
  T scale, b1, c1, b2, c2, rate, inverse_root, eps, decay;

  OF_HOST_DEVICE static AdamWRule of(const AdamWStep& s, double weight_decay) {
    const double lr = *s.learning_rate;
    return {.scale = T(*s.gradient_scale),
            .b1 = T(s.beta1),
            .c1 = T(1 - s.beta1),
            .b2 = T(s.beta2),
            .c2 = T(1 - s.beta2),
            .rate = T(lr / bias_correction(s.beta1, *s.step)),
            .inverse_root = T(1 / std::sqrt(bias_correction(s.beta2, *s.step))),
            .eps = T(s.eps),
            .decay = T(lr * weight_decay)};
  }

  OF_HOST_DEVICE void operator()(T& p, T gradient, T& m, T& v) const {
    const T g = gradient * scale;
    m = b1 * m + c1 * g;
    v = b2 * v + c2 * g * g;
    // p - decay * p, not (1 - decay) * p: at lr * wd = 1e-5 rounding 1 - decay to float would
    // change the decay itself by up to 0.3 %.
    const T decayed = p - decay * p;
    p = decayed - rate * m / (std::sqrt(v) * inverse_root + eps);
  }
};

template <class T>
struct SgdRule {
  static constexpr bool kSecondMoment = false;
  T scale, momentum, rate, decay;

  OF_HOST_DEVICE static SgdRule of(const SgdStep& s, double weight_decay) {
    return {.scale = T(*s.gradient_scale),
            .momentum = T(s.momentum),
            .rate = T(*s.learning_rate),
            .decay = T(weight_decay)};
  }

  OF_HOST_DEVICE void operator()(T& p, T gradient, T& m) const {
    const T g = gradient * scale + decay * p;
    m = momentum * m + g;
    p -= rate * m;
  }
};

}  // namespace orthofed
