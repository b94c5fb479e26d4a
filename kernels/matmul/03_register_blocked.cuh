// 3, register-blocked: a thread sums 8 x 8 elements of C in registers, so that 16 reads of shared
// memory serve 64 products (version 2: 2 reads, 1 product) and the arithmetic sets the pace.
#pragma once
#include "kernels/matmul/epilogue.cuh"

namespace orthofed::gpu {
namespace {

struct RegisterBlocked {
  static constexpr int kTile = 64, kStep = 16, kThreads = 64;
  static constexpr int kRow = kTile + 2;  // 16 steps along k and 2 rows fall into different banks

  template <class T, class B, class Epilogue, class Stream>
  static void run(const Product<T, B>& x, const Epilogue& epilogue, const Stream& stream);
};

// tile[p][i] = X[i0 + i, p0 + p], by neighbours in memory.
template <class T>
__device__ void load_panel(float (&tile)[RegisterBlocked::kStep][RegisterBlocked::kRow],
                           const Operand<T>& x, int64_t i0, int64_t p0) {
  using R = RegisterBlocked;
  for (int e = int(threadIdx.x); e < R::kTile * R::kStep; e += R::kThreads) {
    const int i = x.along_k ? e / R::kStep : e % R::kTile;
    const int p = x.along_k ? e % R::kStep : e / R::kTile;
    tile[p][i] = x(i0 + i, p0 + p);
  }
}

template <class T, class B, class Epilogue>
__global__ void __launch_bounds__(RegisterBlocked::kThreads)
    register_blocked_kernel(Product<T, B> x, Epilogue epilogue) {
  using R = RegisterBlocked;
  __shared__ float a[R::kStep][R::kRow], b[R::kStep][R::kRow];  // [p, i], [p, j]
  const Corner corner = tile_corner<R::kTile, R::kTile>(x.n());
  // Rows ty, ty + 8, ... and columns tx, tx + 8, ...: a warp's reads meet in no bank.
  const int tx = int(threadIdx.x) % 8, ty = int(threadIdx.x) / 8;
  float sum[8][8] = {};
  for (int64_t p0 = 0; p0 < x.k(); p0 += R::kStep) {
    load_panel(a, x.a, corner.i, p0);
    load_panel(b, x.b, corner.j, p0);
    __syncthreads();
#pragma unroll 4
    for (int p = 0; p < R::kStep; ++p) {
      float column[8], row[8];  // of A and B
#pragma unroll
      for (int q = 0; q < 8; ++q) {
        column[q] = a[p][ty + 8 * q];
        row[q] = b[p][tx + 8 * q];
      }
#pragma unroll
      for (int r = 0; r < 8; ++r)
#pragma unroll
        for (int c = 0; c < 8; ++c) sum[r][c] += column[r] * row[c];
    }
    __syncthreads();  // before the next panels
  }
#pragma unroll
  for (int r = 0; r < 8; ++r)
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const int64_t i = corner.i + ty + 8 * r, j = corner.j + tx + 8 * c;
      if (i < x.m() && j < x.n()) finish(epilogue, i, j, sum[r][c]);
    }
}

template <class T, class B, class Epilogue, class Stream>
void RegisterBlocked::run(const Product<T, B>& x, const Epilogue& epilogue, const Stream& stream) {
  launch(register_blocked_kernel<T, B, Epilogue>,
         {.grid_x = tiles<kTile, kTile>(x.m(), x.n()), .threads_x = kThreads}, stream, x, epilogue);
}

}  // namespace
}  // namespace orthofed::gpu
