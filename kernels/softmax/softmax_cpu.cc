#include "kernels/softmax/softmax.h"

#include <limits>
#include <type_traits>

#include "kernels/core/math.h"
#include "kernels/core/rows.h"

namespace orthofed::cpu {

template <class T>
void softmax_forward(const SoftmaxForward<T>& a) {
  using A = Accum<T>;
  parallel_for(a.rows, row_grain(a.cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* xi = a.x + i * a.ldx;  // [cols]
      T* yi = a.y + i * a.ldy;        // [cols]
      const A top = lane_max<A>(a.cols, -std::numeric_limits<A>::infinity(),
                                [=](int64_t j) { return A(xi[j]); });
      const auto exponential = [=](int64_t j) { return exp_(A(xi[j]) - top); };
      if constexpr (std::is_same_v<T, A>) {
        const A inverse =
            A(1) / lane_sum<A>(a.cols, [=](int64_t j) { return yi[j] = exponential(j); });
        for (int64_t j = 0; j < a.cols; ++j) yi[j] *= inverse;
      } else {
        // Twice, because y would round them before the division.
        const A inverse = A(1) / lane_sum<A>(a.cols, exponential);
#pragma GCC ivdep
        for (int64_t j = 0; j < a.cols; ++j) yi[j] = T(exponential(j) * inverse);
      }
    }
  });
}

template <class T>
void softmax_backward(const SoftmaxBackward<T>& a) {
  using A = Accum<T>;
  parallel_for(a.rows, row_grain(a.cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* dyi = a.dy + i * a.lddy;  // [cols]
      const T* yi = a.y + i * a.ldy;     // [cols]
      T* dxi = a.dx + i * a.lddx;        // [cols]
      const A dot = lane_sum<A>(a.cols, [=](int64_t j) { return A(dyi[j]) * A(yi[j]); });
#pragma GCC ivdep
      for (int64_t j = 0; j < a.cols; ++j) dxi[j] = T(A(yi[j]) * (A(dyi[j]) - dot));
    }
  });
}

#define OF_INSTANTIATE(T)                                  \
  template void softmax_forward(const SoftmaxForward<T>&); \
  template void softmax_backward(const SoftmaxBackward<T>&);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
