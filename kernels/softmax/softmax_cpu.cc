#include "kernels/softmax/softmax.h"

#include <limits>
#include <type_traits>

#include "kernels/core/math.h"
#include "kernels/core/rows.h"

namespace orthofed::cpu {

template <class T>
void softmax_forward(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols) {
  using A = Accum<T>;
  parallel_for(rows, row_grain(cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* xi = x + i * ldx;  // [cols]
      T* yi = y + i * ldy;        // [cols]
      const A top = lane_max<A>(cols, -std::numeric_limits<A>::infinity(),
                                [=](int64_t j) { return A(xi[j]); });
      const auto exponential = [=](int64_t j) { return exp_(A(xi[j]) - top); };
      if constexpr (std::is_same_v<T, A>) {
        const A inverse =
            A(1) / lane_sum<A>(cols, [=](int64_t j) { return yi[j] = exponential(j); });
        for (int64_t j = 0; j < cols; ++j) yi[j] *= inverse;
      } else {
        // Twice, because y would round them before the division.
        const A inverse = A(1) / lane_sum<A>(cols, exponential);
#pragma GCC ivdep
        for (int64_t j = 0; j < cols; ++j) yi[j] = T(exponential(j) * inverse);
      }
    }
  });
}

template <class T>
void softmax_backward(const T* dy, int64_t lddy, const T* y, int64_t ldy, T* dx, int64_t lddx,
                      int64_t rows, int64_t cols) {
  using A = Accum<T>;
  parallel_for(rows, row_grain(cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* dyi = dy + i * lddy;  // [cols]
      const T* yi = y + i * ldy;     // [cols]
      T* dxi = dx + i * lddx;        // [cols]
      const A dot = lane_sum<A>(cols, [=](int64_t j) { return A(dyi[j]) * A(yi[j]); });
#pragma GCC ivdep
      for (int64_t j = 0; j < cols; ++j) dxi[j] = T(A(yi[j]) * (A(dyi[j]) - dot));
    }
  });
}

#define OF_INSTANTIATE(T)                                                                       \
  template void softmax_forward<T>(const T*, int64_t, T*, int64_t, int64_t, int64_t);           \
  template void softmax_backward<T>(const T*, int64_t, const T*, int64_t, T*, int64_t, int64_t, \
                                    int64_t);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
