// Every element by itself, a warp 32 neighbouring packs of a row (core/rows.cuh): the bytes bound
// all of it. A cast's packs have as many elements as 16 bytes hold of the wider type, four at most.
#include "kernels/elementwise/elementwise.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/rows.cuh"
#include "kernels/elementwise/elementwise_types.h"

namespace orthofed::gpu {
namespace {

template <class From, class To, int N>
__global__ void cast_kernel(const From* x, int64_t ldx, To* y, int64_t ldy, int64_t rows,
                            int64_t cols) {
  for_each_pack<N>(rows, cols, [&](int64_t i, int64_t j) {
    const Pack<From, N> from = load_part<N>(x + i * ldx + j, cols - j);  // [N]
    Pack<To, N> to;                                                      // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) to[e] = convert<To>(from[e]);
    store_part(y + i * ldy + j, to, cols - j);
  });
}

template <class T>
__global__ void fill_kernel(T value, T* y, int64_t ldy, int64_t rows, int64_t cols) {
  for_each_pack<1>(rows, cols, [&](int64_t i, int64_t j) { y[i * ldy + j] = value; });
}

// *finite is 1 before, and becomes 0 if there is reason to.
template <class T, int N>
__global__ void all_finite_kernel(const T* x, int64_t ldx, int32_t* finite, int64_t rows,
                                  int64_t cols) {
  for_each_pack<N>(rows, cols, [&](int64_t i, int64_t j) {
    const Pack<T, N> v = load_part<N>(x + i * ldx + j, cols - j);  // [N]
    bool all = true;
#pragma unroll
    for (int e = 0; e < N; ++e) all = all && std::isfinite(convert<Accum<T>>(v[e]));
    if (!all) atomicExch(finite, 0);
  });
}

template <class T, int N>
__global__ void add_kernel(Add<T> a) {
  for_each_pack<N>(a.rows, a.cols, [&](int64_t i, int64_t j) {
    const Pack<T, N> v = load_part<N>(a.x + i * a.ldx + j, a.cols - j);  // [N]
    Pack<T, N> sum = load_part<N>(a.y + i * a.ldy + j, a.cols - j);      // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) sum[e] = T(float(sum[e]) + float(v[e]));
    store_part(a.y + i * a.ldy + j, sum, a.cols - j);
  });
}

template <class T, int N>
__global__ void scale_kernel(Scale<T> a) {
  for_each_pack<N>(a.rows, a.cols, [&](int64_t i, int64_t j) {
    const float by = *a.factor;
    Pack<T, N> v = load_part<N>(a.y + i * a.ldy + j, a.cols - j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) v[e] = T(float(v[e]) * by);
    store_part(a.y + i * a.ldy + j, v, a.cols - j);
  });
}

}  // namespace

template <class Stream>
void cast(const Cast& a, const Stream& stream) {
  with_type(a.x_type, [&]<class From>(std::type_identity<From>) {
    with_type(a.y_type, [&]<class To>(std::type_identity<To>) {
      constexpr int N = int(std::min<size_t>(4, 16 / std::max(sizeof(From), sizeof(To))));
      launch(cast_kernel<From, To, N>, map_shape<N>(a.rows, a.cols), stream,
             static_cast<const From*>(a.x), a.ldx, static_cast<To*>(a.y), a.ldy, a.rows, a.cols);
    });
  });
}

template <class Stream>
void fill(const Fill& a, const Stream& stream) {
  with_type(a.type, [&]<class T>(std::type_identity<T>) {
    launch(fill_kernel<T>, map_shape<1>(a.rows, a.cols), stream, convert<T>(a.value),
           static_cast<T*>(a.y), a.ldy, a.rows, a.cols);
  });
}

template <class Stream>
void all_finite(const AllFinite& a, const Stream& stream) {
  fill(Fill{.value = 1, .y = a.finite, .type = DType::i32, .ldy = 1, .rows = 1, .cols = 1}, stream);
  with_type(a.type, [&]<class T>(std::type_identity<T>) {
    if constexpr (!std::is_integral_v<T>) {
      constexpr int N = kFullPack<T>;
      launch(all_finite_kernel<T, N>, map_shape<N>(a.rows, a.cols), stream,
             static_cast<const T*>(a.x), a.ldx, a.finite, a.rows, a.cols);
    }
  });
}

template <class T, class Stream>
void add(const Add<T>& a, const Stream& stream) {
  constexpr int N = kFullPack<T>;
  launch(add_kernel<T, N>, map_shape<N>(a.rows, a.cols), stream, a);
}

template <class T, class Stream>
void scale(const Scale<T>& a, const Stream& stream) {
  constexpr int N = kFullPack<T>;
  launch(scale_kernel<T, N>, map_shape<N>(a.rows, a.cols), stream, a);
}

template void cast(const Cast&, const OF_STREAM&);
template void fill(const Fill&, const OF_STREAM&);
template void all_finite(const AllFinite&, const OF_STREAM&);

#define OF_INSTANTIATE(T)                             \
  template void add(const Add<T>&, const OF_STREAM&); \
  template void scale(const Scale<T>&, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
