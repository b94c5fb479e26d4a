#include <algorithm>
#include <cmath>

#include "kernels/core/rows.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/elementwise/elementwise_types.h"

namespace orthofed::cpu {
namespace {

template <class From, class To>
void cast_rows(const From* x, int64_t ldx, To* y, int64_t ldy, int64_t rows, int64_t cols) {
  parallel_for(rows, row_grain(cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const From* xi = x + i * ldx;  // [cols]
      To* yi = y + i * ldy;          // [cols]
#pragma GCC ivdep
      for (int64_t j = 0; j < cols; ++j) yi[j] = convert<To>(xi[j]);
    }
  });
}

template <class T>
bool row_is_finite(const T* x, int64_t cols) {
  int bad = 0;  // no early exit, so that the loop vectorises
  run_cloned([&] {
    for (int64_t j = 0; j < cols; ++j) bad |= !std::isfinite(convert<Accum<T>>(x[j]));
  });
  return bad == 0;
}

}  // namespace

void cast(const void* x, DType x_type, int64_t ldx, void* y, DType y_type, int64_t ldy,
          int64_t rows, int64_t cols) {
  with_type(x_type, [=]<class From>(std::type_identity<From>) {
    with_type(y_type, [=]<class To>(std::type_identity<To>) {
      cast_rows(static_cast<const From*>(x), ldx, static_cast<To*>(y), ldy, rows, cols);
    });
  });
}

void fill(double value, void* y, DType type, int64_t ldy, int64_t rows, int64_t cols) {
  with_type(type, [=]<class T>(std::type_identity<T>) {
    T* first = static_cast<T*>(y);
    parallel_for(rows, row_grain(cols), [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) std::fill_n(first + i * ldy, cols, convert<T>(value));
    });
  });
}

void all_finite(const void* x, DType type, int64_t ldx, int32_t* finite, int64_t rows,
                int64_t cols) {
  *finite = 1;
  with_type(type, [=]<class T>(std::type_identity<T>) {
    if constexpr (!std::is_integral_v<T>)
      for (int64_t i = 0; i < rows && *finite; ++i)
        *finite = row_is_finite(static_cast<const T*>(x) + i * ldx, cols);
  });
}

template <class T>
void add(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols) {
  using A = Accum<T>;
  parallel_for(rows, row_grain(cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* xi = x + i * ldx;  // [cols]
      T* yi = y + i * ldy;        // [cols]
#pragma GCC ivdep
      for (int64_t j = 0; j < cols; ++j) yi[j] = T(A(yi[j]) + A(xi[j]));
    }
  });
}

template <class T>
void scale(const Accum<T>* factor, T* y, int64_t ldy, int64_t rows, int64_t cols) {
  using A = Accum<T>;
  parallel_for(rows, row_grain(cols), [=, by = *factor](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* yi = y + i * ldy;  // [cols]
      for (int64_t j = 0; j < cols; ++j) yi[j] = T(A(yi[j]) * by);
    }
  });
}

#define OF_INSTANTIATE(T)                                                 \
  template void add<T>(const T*, int64_t, T*, int64_t, int64_t, int64_t); \
  template void scale<T>(const Accum<T>*, T*, int64_t, int64_t, int64_t);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
