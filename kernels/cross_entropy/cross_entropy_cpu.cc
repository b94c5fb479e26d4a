#include "kernels/cross_entropy/cross_entropy.h"

#include <cmath>
#include <limits>
#include <string>

#include "kernels/core/check.h"
#include "kernels/core/math.h"
#include "kernels/core/rows.h"
#include "kernels/cross_entropy/cross_entropy_share.h"

namespace orthofed::cpu {

template <class T>
void cross_entropy(const CrossEntropy<T>& a) {
  const int64_t classes = a.classes;
  const T focal = T(a.options.focal);
  const T floor = classes > 0 ? T(a.options.label_smoothing / double(classes)) : T(0);
  const T peak = T(1 - a.options.label_smoothing);
  const auto weight = [=](int64_t b) {
    return a.weights[b] * (a.class_weights != nullptr && a.weights[b] != T(0)
                               ? a.class_weights[a.labels[b]]
                               : T(1));
  };
  double total_weight = 0;
  for (int64_t b = 0; b < a.batch; ++b) {
    OF_CHECK(a.weights[b] == T(0) || (a.labels[b] >= 0 && a.labels[b] < classes),
             "label " + std::to_string(a.labels[b]) + " of sample " + std::to_string(b) +
                 " is not one of " + std::to_string(classes) + " classes");
    total_weight += double(weight(b));
  }
  double total = 0;
  // A batch of logits is small and its losses are summed in order: one task.
  run_cloned([&] {
    for (int64_t b = 0; b < a.batch; ++b) {
      const T* z = a.logits + b * a.ld;                                // [classes]
      T* dz = a.dlogits != nullptr ? a.dlogits + b * a.ldd : nullptr;  // [classes]
      const T w = weight(b);
      if (w == T(0)) {
        if (a.losses != nullptr) a.losses[b] = T(0);
        for (int64_t j = 0; dz != nullptr && j < classes; ++j) dz[j] = T(0);
        continue;
      }
      const int32_t label = a.labels[b];
      const T* prior = a.prior;
      const auto target = [=](int64_t j) { return (j == label ? peak : T(0)) + floor; };
      const auto adjusted = [=](int64_t j) { return prior != nullptr ? z[j] + prior[j] : z[j]; };
      const T top = lane_max<T>(classes, -std::numeric_limits<T>::infinity(), adjusted);
      const T log_sum =
          std::log(lane_sum<T>(classes, [=](int64_t j) { return exp_(adjusted(j) - top); }));
      const auto log_q = [=](int64_t j) { return adjusted(j) - top - log_sum; };

      // Classes without target mass are left out, not multiplied by 0: a prior of -infinity (a
      // class this site has never seen) makes their log q infinite.
      double own_loss = 0;
      T slope = T(0);  // sum_j t_j q_j phi'(q_j)
      for (int64_t j = 0; j < classes; ++j) {
        if (target(j) == T(0)) continue;
        const Share<T> s = share(log_q(j), focal);
        own_loss += double(target(j) * s.value);
        slope += target(j) * s.slope;
      }
      if (a.losses != nullptr) a.losses[b] = T(own_loss);
      total += double(w) * own_loss;
      if (dz == nullptr) continue;
      const T scale = T(double(w) / total_weight);
      for (int64_t j = 0; j < classes; ++j) {
        const T log_qj = log_q(j), t = target(j);
        const T own = t == T(0) ? T(0) : t * share(log_qj, focal).slope;
        dz[j] = scale * (own - exp_(log_qj) * slope);
      }
    }
  });
  *a.loss = total_weight == 0 ? T(0) : T(total / total_weight);
}

template void cross_entropy(const CrossEntropy<double>&);
template void cross_entropy(const CrossEntropy<float>&);

}  // namespace orthofed::cpu
