#include "kernels/core/rows.h"
#include "kernels/residual/residual.h"

namespace orthofed::cpu {

template <class T>
void residual_forward(const ResidualForward<T>& a) {
  using A = Accum<T>;
  parallel_for(a.rows, row_grain(a.cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const A* xi = a.x + i * a.ldx;
      const T* zi = a.z + i * a.ldz;
      A* yi = a.y + i * a.ldy;
      if (a.gamma == nullptr) {
#pragma GCC ivdep
        for (int64_t j = 0; j < a.cols; ++j) yi[j] = xi[j] + A(zi[j]);
      } else {
#pragma GCC ivdep
        for (int64_t j = 0; j < a.cols; ++j) yi[j] = xi[j] + a.gamma[j] * A(zi[j]);
      }
    }
  });
}

template <class T>
void residual_backward(const ResidualBackward<T>& a) {
  using A = Accum<T>;
  parallel_for(a.rows, row_grain(a.cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const A* dyi = a.dy + i * a.lddy;
      T* dzi = a.dz + i * a.lddz;
      if (a.gamma == nullptr) {
#pragma GCC ivdep
        for (int64_t j = 0; j < a.cols; ++j) dzi[j] = T(dyi[j]);
      } else {
#pragma GCC ivdep
        for (int64_t j = 0; j < a.cols; ++j) dzi[j] = T(a.gamma[j] * dyi[j]);
      }
    }
  });
}

template <class T>
void residual_backward_gamma(const ResidualBackwardGamma<T>& a) {
  using A = Accum<T>;
  column_sum(a.rows, a.cols, a.dgamma, a.accumulate,
             [=](int64_t i, int64_t j) { return a.dy[i * a.lddy + j] * A(a.z[i * a.ldz + j]); });
}

template <class T>
void bias_backward(const BiasBackward<T>& a) {
  using A = Accum<T>;
  column_sum(a.rows, a.cols, a.db, a.accumulate,
             [=](int64_t i, int64_t j) { return A(a.dy[i * a.lddy + j]); });
}

#define OF_INSTANTIATE(T)                                                 \
  template void residual_forward(const ResidualForward<T>&);              \
  template void residual_backward(const ResidualBackward<T>&);            \
  template void residual_backward_gamma(const ResidualBackwardGamma<T>&); \
  template void bias_backward(const BiasBackward<T>&);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
