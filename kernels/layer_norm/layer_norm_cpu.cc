#include <cmath>

#include "kernels/core/rows.h"
#include "kernels/layer_norm/layer_norm.h"

namespace orthofed::cpu {

template <class T>
void layer_norm_forward(const LayerNormForward<T>& a) {
  using A = Accum<T>;
  const A n = A(a.cols);
  parallel_for(a.rows, row_grain(a.cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const A* x = a.x + i * a.ldx;  // [cols]
      T* y = a.y + i * a.ldy;        // [cols]
      // Two passes over a row that is in cache: sum(x^2) - mean^2 would cancel.
      const A mean = lane_sum<A>(a.cols, [=](int64_t j) { return x[j]; }) / n;
      const A variance =
          lane_sum<A>(a.cols, [=](int64_t j) { return (x[j] - mean) * (x[j] - mean); }) / n;
      const A rstd = A(1) / std::sqrt(variance + A(a.eps));
#pragma GCC ivdep
      for (int64_t j = 0; j < a.cols; ++j) y[j] = T((x[j] - mean) * rstd * a.gamma[j] + a.beta[j]);
      a.mean[i] = mean;
      a.rstd[i] = rstd;
    }
  });
}

template <class T>
void layer_norm_backward(const LayerNormBackward<T>& a) {
  using A = Accum<T>;
  const A n = A(a.cols);
  parallel_for(a.rows, row_grain(a.cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* dy = a.dy + i * a.lddy;  // [cols]
      const A* x = a.x + i * a.ldx;     // [cols]
      A* dx = a.dx + i * a.lddx;        // [cols]
      const A *gamma = a.gamma, mean = a.mean[i], rstd = a.rstd[i];
      const auto g = [=](int64_t j) { return A(dy[j]) * gamma[j]; };
      const auto h = [=](int64_t j) { return (x[j] - mean) * rstd; };
      const A mean_g = lane_sum<A>(a.cols, g) / n;
      const A mean_gh = lane_sum<A>(a.cols, [=](int64_t j) { return g(j) * h(j); }) / n;
      if (a.residual == nullptr) {
#pragma GCC ivdep
        for (int64_t j = 0; j < a.cols; ++j) dx[j] = rstd * (g(j) - mean_g - h(j) * mean_gh);
      } else {
        const A* bypass = a.residual + i * a.ldr;  // [cols]
#pragma GCC ivdep
        for (int64_t j = 0; j < a.cols; ++j)
          dx[j] = bypass[j] + rstd * (g(j) - mean_g - h(j) * mean_gh);
      }
    }
  });
}

template <class T>
void layer_norm_backward_affine(const LayerNormBackwardAffine<T>& a) {
  using A = Accum<T>;
  column_sum(a.rows, a.cols, a.dgamma, a.accumulate, [=](int64_t i, int64_t j) {
    return A(a.dy[i * a.lddy + j]) * ((a.x[i * a.ldx + j] - a.mean[i]) * a.rstd[i]);
  });
  column_sum(a.rows, a.cols, a.dbeta, a.accumulate,
             [=](int64_t i, int64_t j) { return A(a.dy[i * a.lddy + j]); });
}

#define OF_INSTANTIATE(T)                                         \
  template void layer_norm_forward(const LayerNormForward<T>&);   \
  template void layer_norm_backward(const LayerNormBackward<T>&); \
  template void layer_norm_backward_affine(const LayerNormBackwardAffine<T>&);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
