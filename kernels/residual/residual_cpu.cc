#include "kernels/core/rows.h"
#include "kernels/residual/residual.h"

namespace orthofed::cpu {

template <class T>
void residual_forward(const Accum<T>* x, int64_t ldx, const T* z, int64_t ldz,
                      const Accum<T>* gamma, Accum<T>* y, int64_t ldy, int64_t rows, int64_t cols) {
  using A = Accum<T>;
  parallel_for(rows, row_grain(cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const A* xi = x + i * ldx;
      const T* zi = z + i * ldz;
      A* yi = y + i * ldy;
      if (gamma == nullptr) {
#pragma GCC ivdep
        for (int64_t j = 0; j < cols; ++j) yi[j] = xi[j] + A(zi[j]);
      } else {
#pragma GCC ivdep
        for (int64_t j = 0; j < cols; ++j) yi[j] = xi[j] + gamma[j] * A(zi[j]);
      }
    }
  });
}

template <class T>
void residual_backward(const Accum<T>* dy, int64_t lddy, const Accum<T>* gamma, T* dz, int64_t lddz,
                       int64_t rows, int64_t cols) {
  using A = Accum<T>;
  parallel_for(rows, row_grain(cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const A* dyi = dy + i * lddy;
      T* dzi = dz + i * lddz;
      if (gamma == nullptr) {
#pragma GCC ivdep
        for (int64_t j = 0; j < cols; ++j) dzi[j] = T(dyi[j]);
      } else {
#pragma GCC ivdep
        for (int64_t j = 0; j < cols; ++j) dzi[j] = T(gamma[j] * dyi[j]);
      }
    }
  });
}

template <class T>
void residual_backward_gamma(const Accum<T>* dy, int64_t lddy, const T* z, int64_t ldz,
                             Accum<T>* dgamma, bool accumulate, int64_t rows, int64_t cols) {
  using A = Accum<T>;
  column_sum(rows, cols, dgamma, accumulate,
             [=](int64_t i, int64_t j) { return dy[i * lddy + j] * A(z[i * ldz + j]); });
}

template <class T>
void bias_backward(const T* dy, int64_t lddy, Accum<T>* db, bool accumulate, int64_t rows,
                   int64_t cols) {
  using A = Accum<T>;
  column_sum(rows, cols, db, accumulate, [=](int64_t i, int64_t j) { return A(dy[i * lddy + j]); });
}

#define OF_INSTANTIATE(T)                                                                          \
  template void residual_forward<T>(const Accum<T>*, int64_t, const T*, int64_t, const Accum<T>*,  \
                                    Accum<T>*, int64_t, int64_t, int64_t);                         \
  template void residual_backward<T>(const Accum<T>*, int64_t, const Accum<T>*, T*, int64_t,       \
                                     int64_t, int64_t);                                            \
  template void residual_backward_gamma<T>(const Accum<T>*, int64_t, const T*, int64_t, Accum<T>*, \
                                           bool, int64_t, int64_t);                                \
  template void bias_backward<T>(const T*, int64_t, Accum<T>*, bool, int64_t, int64_t);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
