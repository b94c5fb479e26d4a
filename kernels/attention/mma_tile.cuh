// Rows of bf16 in shared memory, as tensor cores read them.
#pragma once
#include "kernels/core/mma.cuh"
#include "kernels/core/rows.cuh"

namespace orthofed::gpu {
namespace {

// [rows, kCols]. ldmatrix reads 8 rows of 16 bytes at a time: they meet all banks once, because the
// 16-byte pieces of a row are permuted by its number where a row is a multiple of 128 bytes, and
// because the pitch is an odd multiple of 16 bytes elsewhere.
template <int kCols>
struct MmaTile {
  static_assert(kCols % 16 == 0);
  static constexpr bool kPermuted = kCols % 64 == 0;
  static constexpr int kPitch = kPermuted ? kCols : kCols + 8;
  static constexpr size_t kRowBytes = kPitch * sizeof(bf16);

  bf16* data;

  // The 8 elements from `column` on, which is a multiple of 8.
  __device__ bf16* at(int row, int column) const {
    return data + row * kPitch + (kPermuted ? column ^ (row % 8 * 8) : column);
  }

  // Starts to fill rows first to first + rows - 1 with from [count, cols], zeros around; `thread`
  // of `threads` takes its share. Complete after cp_async_wait and a barrier.
  __device__ void start_load(int first, int rows, const bf16* from, int64_t ld, int64_t count,
                             int cols, int thread, int threads) const {
    constexpr int kPacks = kCols / 8;  // a row
#pragma unroll 1  // nobody waits for the copies here, and the caller's registers are full
    for (int e = thread; e < rows * kPacks; e += threads) {
      const int i = e / kPacks, j = e % kPacks * 8;
      const bf16* source = from + i * ld + j;
      const int present = i < count ? cols - j : 0;
      if (whole<8>(source, present))
        cp_async_16(at(first + i, j), source);
      else
        store_pack(at(first + i, j), load_part<8>(source, present));
    }
  }
};

// The fragments of the 16 x 16 piece at (row, column), both multiples of 16, for the four ways it
// may be a factor. Of B there are two: f[0], f[1] for the first 8 columns of the product, f[2],
// f[3] for the next.

// Where this lane's row of 8 elements is: in row r (0 to 15, and lane % 8 modulo 8, so that the
// permutation is the lane's own all along) and column c (0 or 8) of the piece. Where a row is a
// multiple of 128 bytes, one exclusive or leads from this lane's first piece to any other.
template <int kCols>
__device__ const bf16* fragment_row(const MmaTile<kCols>& tile, int row, int r, int column, int c) {
  const int first = (row + r) * MmaTile<kCols>::kPitch;
  if constexpr (MmaTile<kCols>::kPermuted)
    return tile.data + ((first + (c ^ int(threadIdx.x) % 8 * 8)) ^ column);
  else
    return tile.data + (first + c + column);
}
template <int kCols>
__device__ const bf16* rows_first(const MmaTile<kCols>& tile, int row, int column) {
  const int lane = int(threadIdx.x) % 32;
  return fragment_row(tile, row, lane % 16, column, lane / 16 * 8);
}
template <int kCols>
__device__ const bf16* columns_first(const MmaTile<kCols>& tile, int row, int column) {
  const int lane = int(threadIdx.x) % 32;
  return fragment_row(tile, row, lane % 8 + lane / 16 * 8, column, lane / 8 % 2 * 8);
}

// A [m, k] as it is stored.
template <int kCols>
__device__ void load_a(uint32_t (&f)[4], const MmaTile<kCols>& tile, int row, int column) {
  ldmatrix_x4(f, rows_first(tile, row, column));
}
// A [m, k], stored [k, m]: `row` counts k.
template <int kCols>
__device__ void load_a_transposed(uint32_t (&f)[4], const MmaTile<kCols>& tile, int row,
                                  int column) {
  ldmatrix_x4_trans(f, columns_first(tile, row, column));
}
// B [k, n] as it is stored.
template <int kCols>
__device__ void load_b(uint32_t (&f)[4], const MmaTile<kCols>& tile, int row, int column) {
  ldmatrix_x4_trans(f, rows_first(tile, row, column));
}
// B [k, n], stored [n, k]: `row` counts n.
template <int kCols>
__device__ void load_b_transposed(uint32_t (&f)[4], const MmaTile<kCols>& tile, int row,
                                  int column) {
  ldmatrix_x4(f, columns_first(tile, row, column));
}

// d: this lane's share of 16 x 16 of a product, += A B.
__device__ inline void multiply_16(float (&d)[2][4], const uint32_t (&a)[4],
                                   const uint32_t (&b)[4]) {
  mma_16x8x16(d[0], a, {b[0], b[1]});
  mma_16x8x16(d[1], a, {b[2], b[3]});
}

// d += the inner products of 16 rows of A with 16 rows of B.
template <int kCols>
__device__ void multiply_rows(float (&d)[2][4], const MmaTile<kCols>& a, int row_a,
                              const MmaTile<kCols>& b, int row_b) {
#pragma unroll
  for (int c = 0; c < kCols; c += 16) {
    uint32_t fragment_a[4], fragment_b[4];
    load_a(fragment_a, a, row_a, c);
    load_b_transposed(fragment_b, b, row_b, c);
    multiply_16(d, fragment_a, fragment_b);
  }
}

// A product of 16 x 16 as the factor A of the next one: what a lane holds of the one is just what
// it has to bring for the other.
__device__ inline void as_a(uint32_t (&a)[4], const float (&d)[2][4]) {
  a[0] = pack_bf16(d[0][0], d[0][1]);
  a[1] = pack_bf16(d[0][2], d[0][3]);
  a[2] = pack_bf16(d[1][0], d[1][1]);
  a[3] = pack_bf16(d[1][2], d[1][3]);
}

// to [count, cols] = d [16, kCols], the upper 8 rows times factor[0], the lower times factor[1].
// Goes by way of 16 rows of shared memory that are this warp's own, so that whole rows are written.
template <int kCols>
__device__ void store_16_rows(const float (&d)[kCols / 16][2][4], const float (&factor)[2],
                              const MmaTile<kCols>& tile, int row, bf16* to, int64_t ld,
                              int64_t count, int cols) {
  const int lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  __syncwarp();  // everybody has read what was there
#pragma unroll
  for (int c = 0; c < kCols / 8; ++c)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* pair = &d[c / 2][c % 2][2 * half];
      *reinterpret_cast<uint32_t*>(tile.at(row + g + 8 * half, 8 * c) + 2 * t) =
          pack_bf16(factor[half] * pair[0], factor[half] * pair[1]);
    }
  __syncwarp();
#pragma unroll 1
  for (int e = lane; e < 16 * kCols / 8; e += 32) {
    const int i = e / (kCols / 8), j = e % (kCols / 8) * 8;
    if (i < count) store_part(to + i * ld + j, load_pack<8>(tile.at(row + i, j)), cols - j);
  }
}

}  // namespace
}  // namespace orthofed::gpu
