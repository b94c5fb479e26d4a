// A thread turns one pack of first halves with the pack of second halves that belongs to it; a warp
// takes 32 neighbouring packs of a row (core/rows.cuh). Where half a head is no whole number of
// packs, a pack is one element. The bytes bound it.
#include "kernels/rope/rope.h"

#include "kernels/core/rows.cuh"

namespace orthofed::gpu {
namespace {

template <class T, int N>
__global__ void rotate_kernel(Rope<T> r, float sign) {
  const RopeShape& s = r.shape;
  const int64_t half = s.head_dim / 2, patches = s.tokens - s.prefix;
  for_each_pack<N>(s.batch * patches, s.heads * half, [&](int64_t i, int64_t column) {
    const int64_t patch = i % patches, h = column / half, j = column % half;
    T* a = r.x + (i / patches * s.tokens + s.prefix + patch) * s.ldx + h * s.head_dim + j;
    T* b = a + half;
    Pack<T, N> p = load_part<N>(a, N), q = load_part<N>(b, N);              // [N]
    const Pack<float, N> c = load_part<N>(r.cos + patch * half + j, N);     // [N]
    const Pack<float, N> sine = load_part<N>(r.sin + patch * half + j, N);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const float first = float(p[e]), second = float(q[e]), t = sign * sine[e];
      p[e] = T(first * c[e] - second * t);
      q[e] = T(second * c[e] + first * t);
    }
    store_part(a, p, N);
    store_part(b, q, N);
  });
}

template <class T, class Stream>
void rotate(const Rope<T>& r, float sign, const Stream& stream) {
  const RopeShape& s = r.shape;
  check(s);
  constexpr int N = 4;  // a full pack of angles
  const int64_t half = s.head_dim / 2, rows = s.batch * (s.tokens - s.prefix);
  if (half % N == 0)
    launch(rotate_kernel<T, N>, map_shape<N>(rows, s.heads * half), stream, r, sign);
  else
    launch(rotate_kernel<T, 1>, map_shape<1>(rows, s.heads * half), stream, r, sign);
}

}  // namespace

template <class T, class Stream>
void rope_forward(const Rope<T>& a, const Stream& stream) {
  rotate(a, 1, stream);
}

template <class T, class Stream>
void rope_backward(const Rope<T>& a, const Stream& stream) {
  rotate(a, -1, stream);
}

#define OF_INSTANTIATE(T)                                       \
  template void rope_forward(const Rope<T>&, const OF_STREAM&); \
  template void rope_backward(const Rope<T>&, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
