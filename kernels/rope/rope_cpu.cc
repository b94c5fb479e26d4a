#include "kernels/core/rows.h"
#include "kernels/rope/rope.h"

namespace orthofed::cpu {
namespace {

// sign 1: by the angle; -1: back.
template <class T>
void rotate(const Rope<T>& r, int sign) {
  using A = Accum<T>;
  const RopeShape& shape = r.shape;
  check(shape);
  parallel_for(shape.batch * shape.tokens, row_grain(shape.heads * shape.head_dim),
               [=, s = shape](int64_t begin, int64_t end) {
                 const int64_t half = s.head_dim / 2;
                 for (int64_t i = begin; i < end; ++i) {
                   const int64_t patch = i % s.tokens - s.prefix;
                   if (patch < 0) continue;
                   const A* c = r.cos + patch * half;     // [half]
                   const A* sine = r.sin + patch * half;  // [half]
                   for (int64_t h = 0; h < s.heads; ++h) {
                     T* a = r.x + i * s.ldx + h * s.head_dim;  // [half]
                     T* b = a + half;                          // [half]
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
void rope_forward(const Rope<T>& a) {
  rotate(a, 1);
}

template <class T>
void rope_backward(const Rope<T>& a) {
  rotate(a, -1);
}

#define OF_INSTANTIATE(T)                     \
  template void rope_forward(const Rope<T>&); \
  template void rope_backward(const Rope<T>&);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
