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

namespace orthofed::cpu {

// y = x, both [rows, cols], of the given types and pitches. They must not overlap.
void cast(const void* x, DType x_type, int64_t ldx, void* y, DType y_type, int64_t ldy,
          int64_t rows, int64_t cols);

// Every element of y [rows, cols] pitch ldy becomes `value`, cast as from f64.
void fill(double value, void* y, DType type, int64_t ldy, int64_t rows, int64_t cols);

// *finite = 1 if no element of x [rows, cols] pitch ldx is NaN or infinite, else 0.
void all_finite(const void* x, DType type, int64_t ldx, int32_t* finite, int64_t rows,
                int64_t cols);

// y += x; x [rows, cols] pitch ldx, y [rows, cols] pitch ldy; x may be y.
template <class T>
void add(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols);

// y *= *factor; y [rows, cols] pitch ldy.
template <class T>
void scale(const Accum<T>* factor, T* y, int64_t ldy, int64_t rows, int64_t cols);

}  // namespace orthofed::cpu

namespace orthofed::cost {

inline Cost cast(const void*, DType x_type, int64_t, void*, DType y_type, int64_t, int64_t rows,
                 int64_t cols) {
  return {0, double(rows) * cols * (size_of(x_type) + size_of(y_type))};
}
inline Cost fill(double, void*, DType type, int64_t, int64_t rows, int64_t cols) {
  return {0, double(rows) * cols * size_of(type)};
}
inline Cost all_finite(const void*, DType type, int64_t, int32_t* finite, int64_t rows,
                       int64_t cols) {
  const double n = double(rows) * cols;
  return {n, n * size_of(type) + written(finite, 1)};
}
template <class T>
Cost add(const T* x, int64_t, T* y, int64_t, int64_t rows, int64_t cols) {
  const double n = double(rows) * cols;
  return {n, moved(x, n) + written(y, n, true)};
}
template <class T>
Cost scale(const Accum<T>* factor, T* y, int64_t, int64_t rows, int64_t cols) {
  const double n = double(rows) * cols;
  return {n, moved(factor, 1) + written(y, n, true)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class Stream>
void cast(const void* x, DType x_type, int64_t ldx, void* y, DType y_type, int64_t ldy,
          int64_t rows, int64_t cols, const Stream& stream);

template <class Stream>
void fill(double value, void* y, DType type, int64_t ldy, int64_t rows, int64_t cols,
          const Stream& stream);

template <class Stream>
void all_finite(const void* x, DType type, int64_t ldx, int32_t* finite, int64_t rows, int64_t cols,
                const Stream& stream);

template <class T, class Stream>
void add(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols,
         const Stream& stream);

template <class T, class Stream>
void scale(const Accum<T>* factor, T* y, int64_t ldy, int64_t rows, int64_t cols,
           const Stream& stream);

}  // namespace orthofed::gpu
