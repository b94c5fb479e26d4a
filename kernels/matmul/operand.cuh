// A matrix product as its kernels see it: both operands by their coordinates along m (or n) and
// along k, whichever way they are stored.
#pragma once
#include "kernels/core/warp.cuh"
#include "kernels/matmul/matmul.h"

namespace orthofed::gpu {
namespace {

// The matrix [rows, cols] in memory, read as X[i, p] with p along k and i along m (X = op(A)) or n
// (X = op(B)^T). Outside it is zero.
template <class T>
struct Operand {
  const T* data;
  int64_t rows, cols, ld;
  bool along_k;  // are neighbours of a row neighbours along k, or along m (n)?
  bool packs;    // do base and pitch allow packs of 16 bytes?

  OF_HOST_DEVICE int64_t extent() const { return along_k ? rows : cols; }
  OF_HOST_DEVICE int64_t k() const { return along_k ? cols : rows; }

  __device__ float operator()(int64_t i, int64_t p) const {
    const int64_t row = along_k ? i : p, col = along_k ? p : i;
    return row < rows && col < cols ? float(data[row * ld + col]) : 0.0f;
  }

  // N neighbours in memory from [row, col] on.
  template <int N>
  __device__ Pack<T, N> load(int64_t row, int64_t col) const {
    const int64_t left = row < rows ? cols - col : 0, at = row * ld + col;
    if (packs && left >= N) return load_pack<N>(data + at);
    Pack<T, N> pack;
#pragma unroll
    for (int e = 0; e < N; ++e) pack[e] = e < left ? data[at + e] : T(0.0f);
    return pack;
  }
};

template <class T>
Operand<T> operand(const T* data, int64_t extent, int64_t k, int64_t ld, bool along_k) {
  return {data,
          along_k ? extent : k,
          along_k ? k : extent,
          ld,
          along_k,
          packable<kFullPack<T>>(data, ld)};
}

template <class T, class B>
struct Product {
  Operand<T> a;  // [m, k]
  Operand<B> b;  // [n, k]
  OF_HOST_DEVICE int64_t m() const { return a.extent(); }
  OF_HOST_DEVICE int64_t n() const { return b.extent(); }
  OF_HOST_DEVICE int64_t k() const { return a.k(); }
};

template <class T, class B>
Product<T, B> product(const T* a, const B* b, const MatmulShape& s) {
  OF_CHECK(s.m >= 0 && s.n >= 0 && s.k >= 0, "matmul: negative size");
  OF_CHECK(s.lda >= (s.op_a == Op::none ? s.k : s.m) && s.ldb >= (s.op_b == Op::none ? s.n : s.k) &&
               s.ldc >= s.n,
           "matmul: a pitch is smaller than its row");
  return {operand(a, s.m, s.k, s.lda, s.op_a == Op::none),
          operand(b, s.n, s.k, s.ldb, s.op_b == Op::transpose)};
}

// Nothing but the product.
struct NoTail {
  static constexpr bool kThere = false;
};

// MatmulTail as a kernel sees it: a second product whose operands are stored in the first one's
// orders.
struct Tail {
  static constexpr bool kThere = true;
  Operand<bf16> u;  // [m, rank]
  Operand<bf16> v;  // [n, rank]
  MatmulTailPart parts[3];
};

inline Tail tail_of(const Product<bf16, bf16>& x, const MatmulTail<bf16>& t) {
  OF_CHECK(x.a.along_k, "matmul with a tail: A is transposed");
  OF_CHECK(t.rank > 0 && t.ldu >= t.rank && t.ldv >= (x.b.along_k ? t.rank : x.n()),
           "matmul: a tail's pitch is smaller than its row");
  Tail tail{operand(t.u, x.m(), t.rank, t.ldu, true),
            operand(t.v, x.n(), t.rank, t.ldv, x.b.along_k),
            {t.parts[0], t.parts[1], t.parts[2]}};
  if (t.dense()) tail.parts[0] = {0, x.n(), 0, t.rank};
  return tail;
}

// The ranks that columns [j, j + width) of C need, in tensor cores' steps of 16: what else falls
// into these is zero in V, or beyond both operands.
struct Ranks {
  int64_t begin, end;
};
__device__ inline Ranks tail_ranks(const NoTail&, int64_t, int) {
  return {0, 0};
}
__device__ inline Ranks tail_ranks(const Tail& tail, int64_t j, int width) {
  int64_t first = tail.u.k(), last = 0;
#pragma unroll
  for (int q = 0; q < 3; ++q) {
    const MatmulTailPart& p = tail.parts[q];
    if (p.begin >= j + width || j >= p.end || p.begin >= p.end) continue;
    first = p.first < first ? p.first : first;
    last = p.last > last ? p.last : last;
  }
  first = first / 16 * 16;
  return {first, last > first ? first + ceil_div(last - first, 16) * 16 : first};
}

// C is cut into tiles, one block each. Neighbouring blocks lie along n: they read the same rows of
// A, and all of B (a layer's weights) stays in the L2 cache. The grid has one dimension, because
// the others end at 65,535.
struct Corner {
  int64_t i, j;
};
template <int kTileM, int kTileN>
__device__ Corner tile_corner(int64_t n, unsigned tile = blockIdx.x) {
  const unsigned across = unsigned(ceil_div(n, kTileN));
  return {int64_t{tile / across} * kTileM, int64_t{tile % across} * kTileN};
}
template <int kTileM, int kTileN>
unsigned tiles(int64_t m, int64_t n) {
  const int64_t count = ceil_div(m, kTileM) * ceil_div(n, kTileN);
  OF_CHECK(count <= 0x7fffffff, "matmul: more tiles than a grid has blocks");
  return unsigned(count);
}

}  // namespace
}  // namespace orthofed::gpu
