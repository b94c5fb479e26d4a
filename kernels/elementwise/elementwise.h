// What a tensor does by itself, element by element: change its type, take a value, be added to, be
// scaled, and be searched for NaN and infinity.
//
// cast, fill and all_finite take any type and are told it at run time; add and scale compute in
// Accum<T> and are instantiated for double, float and bf16 (on a GPU for float and bf16).
//
// A cast to a floating type rounds to nearest even; f64 goes to bf16 and f16 by way of f32. A
// floating number becomes an integer towards zero, NaN 0, and one beyond the range its end. An
// integer that is too large for another keeps its low bits. The same bits come out on every device.
//
// Error: cast eps(T)/2 |x| for the rounding (and eps/2 of f32 more from f64 to bf16 and f16), add
// and scale eps/2 of the result each to Accum<T> and to T. Per element: what is read and written,
// and at most 1 flop.
#pragma once
#include <cstdint>

#include "kernels/core/cost.h"
#include "kernels/core/types.h"

namespace orthofed {

// y = x. They must not overlap.
struct Cast {
  const void* x;  // [rows, cols] of x_type, pitch ldx
  DType x_type;
  int64_t ldx;
  void* y;  // [rows, cols] of y_type, pitch ldy
  DType y_type;
  int64_t ldy;
  int64_t rows, cols;
};

// Every element of y becomes `value`, cast as from f64.
struct Fill {
  double value;
  void* y;  // [rows, cols] of `type`, pitch ldy
  DType type;
  int64_t ldy;
  int64_t rows, cols;
};

// *finite = 1 if no element of x is NaN or infinite, else 0.
struct AllFinite {
  const void* x;  // [rows, cols] of `type`, pitch ldx
  DType type;
  int64_t ldx;
  int32_t* finite;
  int64_t rows, cols;
};

// y += x. x may be y.
template <class T>
struct Add {
  const T* x;  // [rows, cols] pitch ldx
  int64_t ldx;
  T* y;  // [rows, cols] pitch ldy
  int64_t ldy;
  int64_t rows, cols;
};

// y *= *factor.
template <class T>
struct Scale {
  const Accum<T>* factor;
  T* y;  // [rows, cols] pitch ldy
  int64_t ldy;
  int64_t rows, cols;
};

}  // namespace orthofed

namespace orthofed::cpu {

void cast(const Cast& a);
void fill(const Fill& a);
void all_finite(const AllFinite& a);
template <class T>
void add(const Add<T>& a);
template <class T>
void scale(const Scale<T>& a);

}  // namespace orthofed::cpu

namespace orthofed::cost {

inline Cost cast(const Cast& a) {
  return {0, double(a.rows) * a.cols * (size_of(a.x_type) + size_of(a.y_type))};
}
inline Cost fill(const Fill& a) {
  return {0, double(a.rows) * a.cols * size_of(a.type)};
}
inline Cost all_finite(const AllFinite& a) {
  const double n = double(a.rows) * a.cols;
  return {n, n * size_of(a.type) + written(a.finite, 1)};
}
template <class T>
Cost add(const Add<T>& a) {
  const double n = double(a.rows) * a.cols;
  return {n, moved(a.x, n) + written(a.y, n, true)};
}
template <class T>
Cost scale(const Scale<T>& a) {
  const double n = double(a.rows) * a.cols;
  return {n, moved(a.factor, 1) + written(a.y, n, true)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class Stream>
void cast(const Cast& a, const Stream& stream);
template <class Stream>
void fill(const Fill& a, const Stream& stream);
template <class Stream>
void all_finite(const AllFinite& a, const Stream& stream);
template <class T, class Stream>
void add(const Add<T>& a, const Stream& stream);
template <class T, class Stream>
void scale(const Scale<T>& a, const Stream& stream);

}  // namespace orthofed::gpu
