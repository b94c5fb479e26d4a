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
__global__ void add_kernel(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols) {
  for_each_pack<N>(rows, cols, [&](int64_t i, int64_t j) {
    const Pack<T, N> v = load_part<N>(x + i * ldx + j, cols - j);  // [N]
    Pack<T, N> sum = load_part<N>(y + i * ldy + j, cols - j);      // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) sum[e] = T(float(sum[e]) + float(v[e]));
    store_part(y + i * ldy + j, sum, cols - j);
  });
}

template <class T, int N>
__global__ void scale_kernel(const float* factor, T* y, int64_t ldy, int64_t rows, int64_t cols) {
  for_each_pack<N>(rows, cols, [&](int64_t i, int64_t j) {
    const float by = *factor;
    Pack<T, N> v = load_part<N>(y + i * ldy + j, cols - j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) v[e] = T(float(v[e]) * by);
    store_part(y + i * ldy + j, v, cols - j);
  });
}

}  // namespace

template <class Stream>
void cast(const void* x, DType x_type, int64_t ldx, void* y, DType y_type, int64_t ldy,
          int64_t rows, int64_t cols, const Stream& stream) {
  with_type(x_type, [&]<class From>(std::type_identity<From>) {
    with_type(y_type, [&]<class To>(std::type_identity<To>) {
      constexpr int N = int(std::min<size_t>(4, 16 / std::max(sizeof(From), sizeof(To))));
      launch(cast_kernel<From, To, N>, map_shape<N>(rows, cols), stream,
             static_cast<const From*>(x), ldx, static_cast<To*>(y), ldy, rows, cols);
    });
  });
}

template <class Stream>
void fill(double value, void* y, DType type, int64_t ldy, int64_t rows, int64_t cols,
          const Stream& stream) {
  with_type(type, [&]<class T>(std::type_identity<T>) {
    launch(fill_kernel<T>, map_shape<1>(rows, cols), stream, convert<T>(value), static_cast<T*>(y),
           ldy, rows, cols);
  });
}

template <class Stream>
void all_finite(const void* x, DType type, int64_t ldx, int32_t* finite, int64_t rows, int64_t cols,
                const Stream& stream) {
  fill(1, finite, DType::i32, 1, 1, 1, stream);
  with_type(type, [&]<class T>(std::type_identity<T>) {
    if constexpr (!std::is_integral_v<T>) {
      constexpr int N = kFullPack<T>;
      launch(all_finite_kernel<T, N>, map_shape<N>(rows, cols), stream, static_cast<const T*>(x),
             ldx, finite, rows, cols);
    }
  });
}

template <class T, class Stream>
void add(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols,
         const Stream& stream) {
  constexpr int N = kFullPack<T>;
  launch(add_kernel<T, N>, map_shape<N>(rows, cols), stream, x, ldx, y, ldy, rows, cols);
}

template <class T, class Stream>
void scale(const Accum<T>* factor, T* y, int64_t ldy, int64_t rows, int64_t cols,
           const Stream& stream) {
  constexpr int N = kFullPack<T>;
  launch(scale_kernel<T, N>, map_shape<N>(rows, cols), stream, factor, y, ldy, rows, cols);
}

template void cast(const void*, DType, int64_t, void*, DType, int64_t, int64_t, int64_t,
                   const OF_STREAM&);
template void fill(double, void*, DType, int64_t, int64_t, int64_t, const OF_STREAM&);
template void all_finite(const void*, DType, int64_t, int32_t*, int64_t, int64_t, const OF_STREAM&);

#define OF_INSTANTIATE(T)                                                                   \
  template void add<T>(const T*, int64_t, T*, int64_t, int64_t, int64_t, const OF_STREAM&); \
  template void scale<T>(const float*, T*, int64_t, int64_t, int64_t, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
