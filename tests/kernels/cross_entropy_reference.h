// The loss of one sample and its gradient in double, as the formulas of cross_entropy.h say. Its test
// and its benchmark compare with them.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/cross_entropy/cross_entropy.h"

namespace orthofed::reference {

struct CrossEntropySample {
  double loss = 0;
  std::vector<double> gradient;  // [classes] dl/dz
};

// z(j): the logit of class j, with the prior.
template <class Z>
CrossEntropySample cross_entropy_sample(int64_t classes, int64_t label,
                                        const CrossEntropyOptions& options, const Z& z) {
  const double a = options.label_smoothing, f = options.focal;
  std::vector<double> q, slope;  // [classes]; slope: t_j q_j phi'(q_j)
  double sum = 0, top = -std::numeric_limits<double>::infinity(), chain = 0;
  for (int64_t j = 0; j < classes; ++j) {
    q.push_back(z(j));
    top = std::max(top, q.back());
  }
  for (double& v : q) sum += v = std::exp(v - top);
  for (double& v : q) v /= sum;
  CrossEntropySample sample;
  for (int64_t j = 0; j < classes; ++j) {
    const double t = (j == label ? 1 - a : 0) + a / double(classes), p = q[size_t(j)];
    if (t == 0) {
      slope.push_back(0);
      continue;
    }
    sample.loss -= t * std::pow(1 - p, f) * std::log(p);
    slope.push_back(t * ((f == 0 || p == 1 ? 0 : f * p * std::pow(1 - p, f - 1) * std::log(p)) -
                         std::pow(1 - p, f)));
    chain += slope.back();
  }
  for (size_t j = 0; j < q.size(); ++j) sample.gradient.push_back(slope[j] - q[j] * chain);
  return sample;
}

}  // namespace orthofed::reference
