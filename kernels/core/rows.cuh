// Elementwise kernels over matrices whose rows have a pitch, in packs of N elements.
//
// A block is 8 warps, and a warp 32 neighbouring packs of one row, so that what it reads and writes
// is one contiguous piece of memory. Each thread moves one pack: the many threads of an SM keep
// enough loads in flight, and nothing ties a thread to a second one.
#pragma once
#include "kernels/core/warp.cuh"

namespace orthofed::gpu {
namespace {

inline constexpr int kMapRows = 8;

// The launch of a kernel that calls for_each_pack<N>. One dimension of blocks: the other two end
// at 65,535.
template <int N>
LaunchShape map_shape(int64_t rows, int64_t cols) {
  return {.grid_x = unsigned(ceil_div(rows, kMapRows) * ceil_div(cols, 32 * N)),
          .threads_x = 32,
          .threads_y = kMapRows};
}

// body(i, j) for this thread's pack, whose first element is (i, j); the last pack of a row may
// reach beyond cols. The body may overwrite what it has read.
template <int N, class Body>
__device__ void for_each_pack(int64_t rows, int64_t cols, const Body& body) {
  const unsigned across = unsigned(ceil_div(cols, 32 * N));  // blocks along a row
  const int64_t i = int64_t{blockIdx.x / across} * kMapRows + threadIdx.y;
  const int64_t j = (int64_t{blockIdx.x % across} * 32 + threadIdx.x) * N;
  if (i < rows && j < cols) body(i, j);
}

// Any address is right: a whole pack at an address that is a multiple of its size moves in one
// instruction, what is left element by element. So who holds which element, and with it the order
// of every sum, depends on the shape alone. (The engine's rows are aligned.)
template <int N, class T>
__device__ bool whole(const T* address, int64_t count) {
  return count >= N && reinterpret_cast<uintptr_t>(address) % sizeof(Pack<T, N>) == 0;
}

// The pack at `from`, of whose elements only the first `count` exist; the others are 0.
template <int N, class T>
__device__ Pack<T, N> load_part(const T* from, int64_t count) {
  if (whole<N>(from, count)) return load_pack<N>(from);
  Pack<T, N> pack;
#pragma unroll
  for (int e = 0; e < N; ++e) pack[e] = e < count ? from[e] : T(0.0f);
  return pack;
}

// Writes the first `count` elements of the pack.
template <int N, class T>
__device__ void store_part(T* to, const Pack<T, N>& pack, int64_t count) {
  if (whole<N>(to, count)) return store_pack(to, pack);
#pragma unroll
  for (int e = 0; e < N; ++e)
    if (e < count) to[e] = pack[e];
}

}  // namespace
}  // namespace orthofed::gpu
