#include "kernels/core/rows.h"
#include "kernels/rope/rope.h"

namespace orthofed::cpu {
namespace {

// sign 1: by the angle; -1: back.
template <class T>
void rotate(T* x, const Accum<T>* cos, const Accum<T>* sin, const RopeShape& s, int sign) {
  check(s);
  using A = Accum<T>;
  const int64_t half = s.head_dim / 2;
  parallel_for(s.batch * s.tokens, row_grain(s.heads * s.head_dim),
               [=](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t patch = i % s.tokens - s.prefix;
                   if (patch < 0) continue;
                   const A* c = cos + patch * half;     // [half]
                   const A* sine = sin + patch * half;  // [half]
                   for (int64_t h = 0; h < s.heads; ++h) {
                     T* a = x + i * s.ldx + h * s.head_dim;  // [half]
                     T* b = a + half;                        // [half]
#pragma GCC ivdep
                     for (int64_t j = 0; j < half; ++j) {
                       const A p = A(a[j]), q = A(b[j]), t = A(sign) * sine[j];
                       a[j] = T(p * c[j] - q * t);
                       b[j] = T(q * c[j] + p * t);
                     }
                   }
                 }
               });
}

}  // namespace

template <class T>
void rope_forward(T* x, const Accum<T>* cos, const Accum<T>* sin, const RopeShape& shape) {
  rotate(x, cos, sin, shape, 1);
}

template <class T>
void rope_backward(T* dx, const Accum<T>* cos, const Accum<T>* sin, const RopeShape& shape) {
  rotate(dx, cos, sin, shape, -1);
}

#define OF_INSTANTIATE(T)                                                                \
  template void rope_forward<T>(T*, const Accum<T>*, const Accum<T>*, const RopeShape&); \
  template void rope_backward<T>(T*, const Accum<T>*, const Accum<T>*, const RopeShape&);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
