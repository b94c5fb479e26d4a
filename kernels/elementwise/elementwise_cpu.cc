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

void cast(const Cast& a) {
  with_type(a.x_type, [=]<class From>(std::type_identity<From>) {
    with_type(a.y_type, [=]<class To>(std::type_identity<To>) {
      cast_rows(static_cast<const From*>(a.x), a.ldx, static_cast<To*>(a.y), a.ldy, a.rows, a.cols);
    });
  });
}

void fill(const Fill& a) {
  with_type(a.type, [=]<class T>(std::type_identity<T>) {
    T* first = static_cast<T*>(a.y);
    parallel_for(a.rows, row_grain(a.cols), [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        std::fill_n(first + i * a.ldy, a.cols, convert<T>(a.value));
    });
  });
}

void all_finite(const AllFinite& a) {
  *a.finite = 1;
  with_type(a.type, [=]<class T>(std::type_identity<T>) {
    if constexpr (!std::is_integral_v<T>)
      for (int64_t i = 0; i < a.rows && *a.finite; ++i)
        *a.finite = row_is_finite(static_cast<const T*>(a.x) + i * a.ldx, a.cols);
  });
}

template <class T>
void add(const Add<T>& a) {
  using A = Accum<T>;
  parallel_for(a.rows, row_grain(a.cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* xi = a.x + i * a.ldx;  // [cols]
      T* yi = a.y + i * a.ldy;        // [cols]
#pragma GCC ivdep
      for (int64_t j = 0; j < a.cols; ++j) yi[j] = T(A(yi[j]) + A(xi[j]));
    }
  });
}

template <class T>
void scale(const Scale<T>& a) {
  using A = Accum<T>;
  parallel_for(a.rows, row_grain(a.cols), [=, by = *a.factor](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* yi = a.y + i * a.ldy;  // [cols]
      for (int64_t j = 0; j < a.cols; ++j) yi[j] = T(A(yi[j]) * by);
    }
  });
}

#define OF_INSTANTIATE(T)           \
  template void add(const Add<T>&); \
  template void scale(const Scale<T>&);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
