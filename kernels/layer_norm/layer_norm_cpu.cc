#include <cmath>

#include "kernels/core/rows.h"
#include "kernels/layer_norm/layer_norm.h"

namespace orthofed::cpu {

template <class T>
void layer_norm_forward(const Accum<T>* x, int64_t ldx, const Accum<T>* gamma, const Accum<T>* beta,
                        T* y, int64_t ldy, Accum<T>* mean, Accum<T>* rstd, int64_t rows,
                        int64_t cols, double eps) {
  using A = Accum<T>;
  const A n = A(cols);
  parallel_for(rows, row_grain(cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const A* xi = x + i * ldx;  // [cols]
      T* yi = y + i * ldy;        // [cols]
      // Two passes over a row that is in cache: sum(x^2) - mean^2 would cancel.
      const A m = lane_sum<A>(cols, [=](int64_t j) { return xi[j]; }) / n;
      const A variance =
          lane_sum<A>(cols, [=](int64_t j) { return (xi[j] - m) * (xi[j] - m); }) / n;
      const A r = A(1) / std::sqrt(variance + A(eps));
#pragma GCC ivdep
      for (int64_t j = 0; j < cols; ++j) yi[j] = T((xi[j] - m) * r * gamma[j] + beta[j]);
      mean[i] = m;
      rstd[i] = r;
    }
  });
}

template <class T>
void layer_norm_backward(const T* dy, int64_t lddy, const Accum<T>* x, int64_t ldx,
                         const Accum<T>* gamma, const Accum<T>* mean, const Accum<T>* rstd,
                         const Accum<T>* residual, int64_t ldr, Accum<T>* dx, int64_t lddx,
                         int64_t rows, int64_t cols) {
  using A = Accum<T>;
  const A n = A(cols);
  parallel_for(rows, row_grain(cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* dyi = dy + i * lddy;  // [cols]
      const A* xi = x + i * ldx;     // [cols]
      A* dxi = dx + i * lddx;        // [cols]
      const A m = mean[i], r = rstd[i];
      const auto g = [=](int64_t j) { return A(dyi[j]) * gamma[j]; };
      const auto h = [=](int64_t j) { return (xi[j] - m) * r; };
      const A mean_g = lane_sum<A>(cols, g) / n;
      const A mean_gh = lane_sum<A>(cols, [=](int64_t j) { return g(j) * h(j); }) / n;
      if (residual == nullptr) {
#pragma GCC ivdep
        for (int64_t j = 0; j < cols; ++j) dxi[j] = r * (g(j) - mean_g - h(j) * mean_gh);
      } else {
        const A* ri = residual + i * ldr;  // [cols]
#pragma GCC ivdep
        for (int64_t j = 0; j < cols; ++j) dxi[j] = ri[j] + r * (g(j) - mean_g - h(j) * mean_gh);
      }
    }
  });
}

template <class T>
void layer_norm_backward_affine(const T* dy, int64_t lddy, const Accum<T>* x, int64_t ldx,
                                const Accum<T>* mean, const Accum<T>* rstd, Accum<T>* dgamma,
                                Accum<T>* dbeta, bool accumulate, int64_t rows, int64_t cols) {
  using A = Accum<T>;
  column_sum(rows, cols, dgamma, accumulate, [=](int64_t i, int64_t j) {
    return A(dy[i * lddy + j]) * ((x[i * ldx + j] - mean[i]) * rstd[i]);
  });
  column_sum(rows, cols, dbeta, accumulate,
             [=](int64_t i, int64_t j) { return A(dy[i * lddy + j]); });
}

#define OF_INSTANTIATE(T)                                                                         \
  template void layer_norm_forward<T>(const Accum<T>*, int64_t, const Accum<T>*, const Accum<T>*, \
                                      T*, int64_t, Accum<T>*, Accum<T>*, int64_t, int64_t,        \
                                      double);                                                    \
  template void layer_norm_backward<T>(                                                           \
      const T*, int64_t, const Accum<T>*, int64_t, const Accum<T>*, const Accum<T>*,              \
      const Accum<T>*, const Accum<T>*, int64_t, Accum<T>*, int64_t, int64_t, int64_t);           \
  template void layer_norm_backward_affine<T>(const T*, int64_t, const Accum<T>*, int64_t,        \
                                              const Accum<T>*, const Accum<T>*, Accum<T>*,        \
                                              Accum<T>*, bool, int64_t, int64_t);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
