#include "kernels/core/rows.h"
#include "kernels/swiglu/swiglu.h"
#include "kernels/swiglu/swiglu_form.h"

namespace orthofed::cpu {

template <class T>
void swiglu_forward(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols) {
  using A = Accum<T>;
  parallel_for(rows, row_grain(cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* g = x + i * ldx;  // [cols]
      const T* u = g + cols;     // [cols]
      T* yi = y + i * ldy;       // [cols]
#pragma GCC ivdep
      for (int64_t j = 0; j < cols; ++j) yi[j] = T(swiglu(A(g[j]), A(u[j])));
    }
  });
}

template <class T>
void swiglu_backward(const T* dy, int64_t lddy, const T* x, int64_t ldx, T* dx, int64_t lddx,
                     int64_t rows, int64_t cols) {
  using A = Accum<T>;
  parallel_for(rows, row_grain(cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* dyi = dy + i * lddy;  // [cols]
      const T* g = x + i * ldx;      // [cols]
      const T* u = g + cols;         // [cols]
      T* dg = dx + i * lddx;         // [cols]
      T* du = dg + cols;             // [cols]
#pragma GCC ivdep
      for (int64_t j = 0; j < cols; ++j) {
        const auto d = swiglu_gradient(A(dyi[j]), A(g[j]), A(u[j]));
        dg[j] = T(d.gate);
        du[j] = T(d.up);
      }
    }
  });
}

#define OF_INSTANTIATE(T)                                                                      \
  template void swiglu_forward<T>(const T*, int64_t, T*, int64_t, int64_t, int64_t);           \
  template void swiglu_backward<T>(const T*, int64_t, const T*, int64_t, T*, int64_t, int64_t, \
                                   int64_t);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
