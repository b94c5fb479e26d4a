#include <algorithm>
#include <cmath>

#include "kernels/core/rows.h"
#include "kernels/grad_norm/grad_norm.h"

namespace orthofed::cpu {

template <class T>
void grad_norm(const GradientSpan<T>* gradients, int64_t count, int64_t chunks, const double* scale,
               double max_norm, double* norm, double* factor) {
  constexpr int64_t kAtATime = 64;
  double total = 0;
  for (int64_t first = 0; first < chunks; first += kAtATime) {
    const int64_t now = std::min(kAtATime, chunks - first);
    double partial[kAtATime];
    parallel_for(now, 1, [=, &partial](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const Chunk chunk = find_chunk(gradients, count, first + c);
        const T* g = gradients[chunk.item].data + chunk.begin;
        partial[c] = lane_sum<double>(chunk.end - chunk.begin,
                                      [=](int64_t j) { return double(g[j]) * double(g[j]); });
      }
    });
    for (int64_t c = 0; c < now; ++c) total += partial[c];
  }
  *norm = *scale * std::sqrt(total);
  *factor = gradient_factor(*norm, *scale, max_norm);
}

#define OF_INSTANTIATE(T)                                                                     \
  template void grad_norm<T>(const GradientSpan<T>*, int64_t, int64_t, const double*, double, \
                             double*, double*);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
