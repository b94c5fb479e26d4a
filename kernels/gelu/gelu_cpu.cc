#include "kernels/gelu/gelu.h"

#include "kernels/core/rows.h"
#include "kernels/gelu/gelu_form.h"

namespace orthofed::cpu {
namespace {

template <class Form, class T>
void forward(const GeluForward<T>& a) {
  using A = Accum<T>;
  parallel_for(a.rows, row_grain(a.cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* xi = a.x + i * a.ldx;
      T* yi = a.y + i * a.ldy;
#pragma GCC ivdep
      for (int64_t j = 0; j < a.cols; ++j) yi[j] = T(A(xi[j]) * Form::phi(A(xi[j])));
    }
  });
}

template <class Form, class T>
void backward(const GeluBackward<T>& a) {
  using A = Accum<T>;
  parallel_for(a.rows, row_grain(a.cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* dyi = a.dy + i * a.lddy;
      const T* xi = a.x + i * a.ldx;
      T* dxi = a.dx + i * a.lddx;
#pragma GCC ivdep
      for (int64_t j = 0; j < a.cols; ++j) dxi[j] = T(A(dyi[j]) * Form::derivative(A(xi[j])));
    }
  });
}

}  // namespace

template <class T>
void gelu_forward(const GeluForward<T>& a) {
  with_gelu_form(a.kind, [&]<class Form>(Form) { forward<Form>(a); });
}

template <class T>
void gelu_backward(const GeluBackward<T>& a) {
  with_gelu_form(a.kind, [&]<class Form>(Form) { backward<Form>(a); });
}

#define OF_INSTANTIATE(T)                            \
  template void gelu_forward(const GeluForward<T>&); \
  template void gelu_backward(const GeluBackward<T>&);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
