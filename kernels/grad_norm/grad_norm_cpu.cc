#include <algorithm>
#include <cmath>

#include "kernels/core/rows.h"
#include "kernels/grad_norm/grad_norm.h"

namespace orthofed::cpu {

template <class T>
void grad_norm(const GradNorm<T>& a) {
  constexpr int64_t kAtATime = 64;
  double total = 0;
  for (int64_t first = 0; first < a.chunks; first += kAtATime) {
    const int64_t now = std::min(kAtATime, a.chunks - first);
    double partial[kAtATime];
    parallel_for(now, 1, [=, &partial](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const Chunk chunk = find_chunk(a.gradients, a.count, first + c);
        const T* g = a.gradients[chunk.item].data + chunk.begin;
        partial[c] = lane_sum<double>(chunk.end - chunk.begin,
                                      [=](int64_t j) { return double(g[j]) * double(g[j]); });
      }
    });
    for (int64_t c = 0; c < now; ++c) total += partial[c];
  }
  *a.norm = *a.scale * std::sqrt(total);
  *a.factor = gradient_factor(*a.norm, *a.scale, a.max_norm);
}

#define OF_INSTANTIATE(T) template void grad_norm(const GradNorm<T>&);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
