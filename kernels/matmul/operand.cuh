// A matrix product as its kernels see it: both operands by their coordinates along m (or n) and
// along k, whichever way they are stored.
#pragma once
#include "kernels/core/warp.cuh"
#include "kernels/matmul/matmul.h"

namespace orthofed::gpu {
namespace {

// X[i, p], i along m for op(A) and along n for op(B)^T, p along k.
template <class T>
struct Operand {
  const T* data;
  int64_t ld;
  bool along_k;  // are neighbours in memory neighbours along k (or along m, n)?
  __device__ float operator()(int64_t i, int64_t p) const {
    return float(along_k ? data[i * ld + p] : data[p * ld + i]);
  }
};

template <class T, class B>
struct Product {
  Operand<T> a;  // [m, k]
  Operand<B> b;  // [n, k]
  int64_t m, n, k;
};

template <class T, class B>
Product<T, B> product(const T* a, const B* b, const MatmulShape& s) {
  OF_CHECK(s.m >= 0 && s.n >= 0 && s.k >= 0, "matmul: negative size");
  OF_CHECK(s.lda >= (s.op_a == Op::none ? s.k : s.m) && s.ldb >= (s.op_b == Op::none ? s.n : s.k) &&
               s.ldc >= s.n,
           "matmul: a pitch is smaller than its row");
  return {{a, s.lda, s.op_a == Op::none}, {b, s.ldb, s.op_b == Op::transpose}, s.m, s.n, s.k};
}

// C is cut into tiles, one block each. Neighbouring blocks lie along n: they read the same rows of
// A, and all of B (a layer's weights) stays in the L2 cache. The grid has one dimension, because
// the others end at 65,535.
struct Corner {
  int64_t i, j;
};
template <int kTileM, int kTileN>
__device__ Corner tile_corner(int64_t n) {
  const int64_t across = ceil_div(n, kTileN);
  return {blockIdx.x / across * kTileM, blockIdx.x % across * kTileN};
}
template <int kTileM, int kTileN>
unsigned tiles(int64_t m, int64_t n) {
  const int64_t count = ceil_div(m, kTileM) * ceil_div(n, kTileN);
  OF_CHECK(count <= 0x7fffffff, "matmul: more tiles than a grid has blocks");
  return unsigned(count);
}

}  // namespace
}  // namespace orthofed::gpu
