#include "kernels/core/rows.h"
#include "kernels/swiglu/swiglu.h"
#include "kernels/swiglu/swiglu_form.h"

namespace orthofed::cpu {

template <class T>
void swiglu_forward(const SwigluForward<T>& a) {
  using A = Accum<T>;
  parallel_for(a.rows, row_grain(a.cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* g = a.x + i * a.ldx;  // [cols]
      const T* u = g + a.cols;       // [cols]
      T* yi = a.y + i * a.ldy;       // [cols]
#pragma GCC ivdep
      for (int64_t j = 0; j < a.cols; ++j) yi[j] = T(swiglu(A(g[j]), A(u[j])));
    }
  });
}

template <class T>
void swiglu_backward(const SwigluBackward<T>& a) {
  using A = Accum<T>;
  parallel_for(a.rows, row_grain(a.cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* dyi = a.dy + i * a.lddy;  // [cols]
      const T* g = a.x + i * a.ldx;      // [cols]
      const T* u = g + a.cols;           // [cols]
      T* dg = a.dx + i * a.lddx;         // [cols]
      T* du = dg + a.cols;               // [cols]
#pragma GCC ivdep
      for (int64_t j = 0; j < a.cols; ++j) {
        const auto d = swiglu_gradient(A(dyi[j]), A(g[j]), A(u[j]));
        dg[j] = T(d.gate);
        du[j] = T(d.up);
      }
    }
  });
}

#define OF_INSTANTIATE(T)                                \
  template void swiglu_forward(const SwigluForward<T>&); \
  template void swiglu_backward(const SwigluBackward<T>&);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
