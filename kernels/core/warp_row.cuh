// One warp, one row: what kernels build on that reduce over the last dimension.
//
// Lane l holds packs l, l + 32, l + 64, ... of the row, so that a warp reads neighbouring packs. A
// row that fits is kept in registers: it is read from memory once, however many passes over it the
// formula has. A longer row is read again in every pass, mostly from cache. Sums are made by warp
// shuffles alone: no barrier, no shared memory.
#pragma once
#include "kernels/core/rows.cuh"

namespace orthofed::gpu {
namespace {

inline constexpr int kRowWarps = 4;  // rows a block

inline LaunchShape warp_row_shape(int64_t rows) {
  return {.grid_x = unsigned(ceil_div(rows, kRowWarps)), .threads_x = 32, .threads_y = kRowWarps};
}
__device__ inline int64_t warp_row_index() {
  return int64_t{blockIdx.x} * kRowWarps + threadIdx.y;
}

// f(p, j) for each of this lane's packs of a row: pack number p begins with element j.
template <int N, int kItems, class F>
__device__ void over_row(int64_t cols, const F& f) {
  const int64_t first = int64_t(threadIdx.x) * N;
  if constexpr (kItems > 0) {
#pragma unroll
    for (int p = 0; p < kItems / N; ++p)
      if (const int64_t j = first + p * (32 * N); j < cols) f(p, j);
  } else {
    for (int64_t j = first; j < cols; j += 32 * N) f(0, j);
  }
}

// A row of at most 32 kItems elements, in registers: row(p, j) is pack number p, which begins with
// element j.
template <class T, int N, int kItems>
class WarpRow {
 public:
  __device__ WarpRow(const T* row, int64_t cols) {
    over_row<N, kItems>(cols,
                        [&](int p, int64_t j) { packs_[p] = load_part<N>(row + j, cols - j); });
  }
  __device__ const Pack<T, N>& operator()(int p, int64_t) const { return packs_[p]; }

 private:
  Pack<T, N> packs_[kItems / N];
};

// kItems = 0: a row of any length, which stays in memory.
template <class T, int N>
class WarpRow<T, N, 0> {
 public:
  __device__ WarpRow(const T* row, int64_t cols) : row_(row), cols_(cols) {}
  __device__ Pack<T, N> operator()(int, int64_t j) const {
    return load_part<N>(row_ + j, cols_ - j);
  }

 private:
  const T* row_;
  int64_t cols_;
};

// run.operator()<kItems>() with the WarpRow that holds rows of `cols` elements: up to the 256 of an
// attention map, the 768 of ViT-B, the 1,024 to 1,536 of ViT-L to ViT-g, or more.
template <class Run>
void with_row_items(int64_t cols, const Run& run) {
  if (cols <= 32 * 8)
    run.template operator()<8>();
  else if (cols <= 32 * 24)
    run.template operator()<24>();
  else if (cols <= 32 * 48)
    run.template operator()<48>();
  else
    run.template operator()<0>();
}

}  // namespace
}  // namespace orthofed::gpu
