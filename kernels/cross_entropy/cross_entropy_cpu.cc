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
void cross_entropy(const T* logits, int64_t ld, const int32_t* labels, const T* weights,
                   const T* class_weights, const T* prior, T* loss, T* losses, T* dlogits,
                   int64_t ldd, int64_t batch, int64_t classes,
                   const CrossEntropyOptions& options) {
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
      double own_loss = 0;
      T slope = T(0);  // sum_j t_j q_j phi'(q_j)
      for (int64_t j = 0; j < classes; ++j) {
        if (target(j) == T(0)) continue;
        const Share<T> s = share(log_q(j), focal);
        own_loss += double(target(j) * s.value);
        slope += target(j) * s.slope;
      }
      if (losses != nullptr) losses[b] = T(own_loss);
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
  *loss = total_weight == 0 ? T(0) : T(total / total_weight);
}

#define OF_INSTANTIATE(T)                                                                         \
  template void cross_entropy<T>(const T*, int64_t, const int32_t*, const T*, const T*, const T*, \
                                 T*, T*, T*, int64_t, int64_t, int64_t,                           \
                                 const CrossEntropyOptions&);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
