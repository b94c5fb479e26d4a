#include "kernels/grad_norm/grad_norm.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/rows.h"

namespace orthofed::cpu {

template <class T>
double grad_norm(const GradientSpan<T>* gradients, int64_t count) {
  constexpr int64_t kChunks = 64, kSmallest = 16384;
  double total = 0;
  for (int64_t k = 0; k < count; ++k) {
    const T* g = gradients[k].data;
    const int64_t size = gradients[k].size;
    const int64_t grain = std::max(kSmallest, (size + kChunks - 1) / kChunks);
    double partial[kChunks] = {};
    parallel_for(size, grain, [=, &partial](int64_t begin, int64_t end) {
      partial[begin / grain] = lane_sum<double>(
          end - begin, [=](int64_t j) { return double(g[begin + j]) * double(g[begin + j]); });
    });
    for (double p : partial) total += p;
  }
  return std::sqrt(total);
}

template double grad_norm<double>(const GradientSpan<double>*, int64_t);
template double grad_norm<float>(const GradientSpan<float>*, int64_t);

}  // namespace orthofed::cpu
