#include "kernels/cross_entropy/cross_entropy.h"

#include <cmath>
#include <limits>
#include <string>

#include "kernels/core/check.h"
#include "kernels/core/math.h"
#include "kernels/core/rows.h"

namespace orthofed::cpu {
namespace {

// One class's share of a sample's loss, phi(q) = -(1 - q)^f log q, and q phi'(q), which is what the
// chain rule through the softmax needs:  dl/dz_k = t_k q_k phi'(q_k) - q_k sum_j t_j q_j phi'(q_j).
template <class T>
struct Share {
  T value, slope;
};

template <class T>
Share<T> share(T log_q, T focal) {
  if (focal == T(0)) return {-log_q, T(-1)};
  const T q = std::exp(log_q), rest = -std::expm1(log_q);  // 1 - q without cancellation
  if (rest <= T(0)) return {T(0), T(0)};                   // q = 1: the limit of both
  const T power = std::pow(rest, focal);
  return {-power * log_q, focal * q * power / rest * log_q - power};
}

}  // namespace

template <class T>
T cross_entropy(const T* logits, int64_t ld, const int32_t* labels, const T* weights,
                const T* class_weights, const T* prior, T* losses, T* dlogits, int64_t ldd,
                int64_t batch, int64_t classes, const CrossEntropyOptions& options) {
  const T focal = T(options.focal);
  const T floor = classes > 0 ? T(options.label_smoothing / double(classes)) : T(0);
  const T peak = T(1 - options.label_smoothing);
  const auto weight = [=](int64_t b) {
    return weights[b] *
           (class_weights != nullptr && weights[b] != T(0) ? class_weights[labels[b]] : T(1));
  };
  double total_weight = 0;
  for (int64_t b = 0; b < batch; ++b) {
    OF_CHECK(weights[b] == T(0) || (labels[b] >= 0 && labels[b] < classes),
             "label " + std::to_string(labels[b]) + " of sample " + std::to_string(b) +
                 " is not one of " + std::to_string(classes) + " classes");
    total_weight += double(weight(b));
  }
  double total = 0;
  // A batch of logits is small and its losses are summed in order: one task.
  run_cloned([&] {
    for (int64_t b = 0; b < batch; ++b) {
      const T* z = logits + b * ld;                              // [classes]
      T* dz = dlogits != nullptr ? dlogits + b * ldd : nullptr;  // [classes]
      const T w = weight(b);
      if (w == T(0)) {
        if (losses != nullptr) losses[b] = T(0);
        for (int64_t j = 0; dz != nullptr && j < classes; ++j) dz[j] = T(0);
        continue;
      }
      const int32_t label = labels[b];
      const auto target = [=](int64_t j) { return (j == label ? peak : T(0)) + floor; };
      const auto adjusted = [=](int64_t j) { return prior != nullptr ? z[j] + prior[j] : z[j]; };
      const T top = lane_max<T>(classes, -std::numeric_limits<T>::infinity(), adjusted);
      const T log_sum =
          std::log(lane_sum<T>(classes, [=](int64_t j) { return exp_(adjusted(j) - top); }));
      const auto log_q = [=](int64_t j) { return adjusted(j) - top - log_sum; };

      // Classes without target mass are left out, not multiplied by 0: a prior of -infinity (a
      // class this site has never seen) makes their log q infinite.
      double loss = 0;
      T slope = T(0);  // sum_j t_j q_j phi'(q_j)
      for (int64_t j = 0; j < classes; ++j) {
        if (target(j) == T(0)) continue;
        const Share<T> s = share(log_q(j), focal);
        loss += double(target(j) * s.value);
        slope += target(j) * s.slope;
      }
      if (losses != nullptr) losses[b] = T(loss);
      total += double(w) * loss;
      if (dz == nullptr) continue;
      const T scale = T(double(w) / total_weight);
      for (int64_t j = 0; j < classes; ++j) {
        const T log_qj = log_q(j), t = target(j);
        const T own = t == T(0) ? T(0) : t * share(log_qj, focal).slope;
        dz[j] = scale * (own - exp_(log_qj) * slope);
      }
    }
  });
  return total_weight == 0 ? T(0) : T(total / total_weight);
}

template float cross_entropy<float>(const float*, int64_t, const int32_t*, const float*,
                                    const float*, const float*, float*, float*, int64_t, int64_t,
                                    int64_t, const CrossEntropyOptions&);
template double cross_entropy<double>(const double*, int64_t, const int32_t*, const double*,
                                      const double*, const double*, double*, double*, int64_t,
                                      int64_t, int64_t, const CrossEntropyOptions&);

}  // namespace orthofed::cpu
