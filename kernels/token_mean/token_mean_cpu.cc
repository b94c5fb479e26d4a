#include <algorithm>

#include "kernels/core/rows.h"
#include "kernels/token_mean/token_mean.h"

namespace orthofed::cpu {

// A task is an image: its sums stay in cache, its tokens are read once, in order.
template <class T>
void token_mean_forward(const TokenMeanForward<T>& a) {
  check(a.shape);
  const auto [batch, tokens, first, dim] = a.shape;
  constexpr int64_t kColumns = 64;
  parallel_for(batch, 1,
               [=, tokens = tokens, first = first, dim = dim](int64_t begin, int64_t end) {
                 for (int64_t b = begin; b < end; ++b)
                   for (int64_t j0 = 0; j0 < dim; j0 += kColumns) {
                     const int64_t width = std::min(kColumns, dim - j0);
                     double sum[kColumns] = {};
                     for (int64_t t = first; t < tokens; ++t) {
                       const T* from = a.x + (b * tokens + t) * a.ldx + j0;  // [width]
                       for (int64_t j = 0; j < width; ++j) sum[j] += double(from[j]);
                     }
                     for (int64_t j = 0; j < width; ++j)
                       a.y[b * a.ldy + j0 + j] = T(sum[j] / double(tokens - first));
                   }
               });
}

template <class T>
void token_mean_backward(const TokenMeanBackward<T>& a) {
  check(a.shape);
  const auto [batch, tokens, first, dim] = a.shape;
  const T share = T(1) / T(tokens - first);
  parallel_for(batch * tokens, row_grain(dim),
               [=, tokens = tokens, first = first, dim = dim](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const bool counts = i % tokens >= first;
                   const T* from = a.dy + i / tokens * a.lddy;  // [dim]
                   T* to = a.dx + i * a.lddx;                   // [dim]
                   for (int64_t j = 0; j < dim; ++j) to[j] = counts ? from[j] * share : T(0);
                 }
               });
}

#define OF_INSTANTIATE(T)                                       \
  template void token_mean_forward(const TokenMeanForward<T>&); \
  template void token_mean_backward(const TokenMeanBackward<T>&);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
