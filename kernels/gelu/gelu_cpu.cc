#include "kernels/gelu/gelu.h"

#include "kernels/core/rows.h"
#include "kernels/gelu/gelu_form.h"

namespace orthofed::cpu {
namespace {

template <class Form, class T>
void forward(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols) {
  using A = Accum<T>;
  parallel_for(rows, row_grain(cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* xi = x + i * ldx;
      T* yi = y + i * ldy;
#pragma GCC ivdep
      for (int64_t j = 0; j < cols; ++j) yi[j] = T(A(xi[j]) * Form::phi(A(xi[j])));
    }
  });
}

template <class Form, class T>
void backward(const T* dy, int64_t lddy, const T* x, int64_t ldx, T* dx, int64_t lddx, int64_t rows,
              int64_t cols) {
  using A = Accum<T>;
  parallel_for(rows, row_grain(cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* dyi = dy + i * lddy;
      const T* xi = x + i * ldx;
      T* dxi = dx + i * lddx;
#pragma GCC ivdep
      for (int64_t j = 0; j < cols; ++j) dxi[j] = T(A(dyi[j]) * Form::derivative(A(xi[j])));
    }
  });
}

}  // namespace

template <class T>
void gelu_forward(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols,
                  GeluKind kind) {
  with_gelu_form(kind, [&]<class Form>(Form) { forward<Form>(x, ldx, y, ldy, rows, cols); });
}

template <class T>
void gelu_backward(const T* dy, int64_t lddy, const T* x, int64_t ldx, T* dx, int64_t lddx,
                   int64_t rows, int64_t cols, GeluKind kind) {
  with_gelu_form(kind,
                 [&]<class Form>(Form) { backward<Form>(dy, lddy, x, ldx, dx, lddx, rows, cols); });
}

#define OF_INSTANTIATE(T)                                                                    \
  template void gelu_forward<T>(const T*, int64_t, T*, int64_t, int64_t, int64_t, GeluKind); \
  template void gelu_backward<T>(const T*, int64_t, const T*, int64_t, T*, int64_t, int64_t, \
                                 int64_t, GeluKind);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
