// 2, tiled: a block keeps a 16 x 16 tile of each operand in shared memory, so that memory is read
// 16 times less often: every value that a block loads serves 16 threads.
#pragma once
#include "kernels/matmul/epilogue.cuh"

namespace orthofed::gpu {
namespace {

inline constexpr int kSquare = 16;

// tile[i][p] = X[i0 + i, p0 + p]. threadIdx.x runs along what is contiguous in memory.
template <class T>
__device__ void load_square(float (&tile)[kSquare][kSquare + 1], const Operand<T>& x, int64_t i0,
                            int64_t p0) {
  const unsigned i = x.along_k ? threadIdx.y : threadIdx.x;
  const unsigned p = x.along_k ? threadIdx.x : threadIdx.y;
  tile[i][p] = x(i0 + i, p0 + p);
}

template <class T, class B, class Epilogue>
__global__ void tiled_kernel(Product<T, B> x, Epilogue epilogue) {
  // One column more than needed: a column then crosses all banks.
  __shared__ float a[kSquare][kSquare + 1], b[kSquare][kSquare + 1];  // [i, p], [j, p]
  const Corner corner = tile_corner<kSquare, kSquare>(x.n());
  float sum = 0;
  for (int64_t p0 = 0; p0 < x.k(); p0 += kSquare) {
    load_square(a, x.a, corner.i, p0);
    load_square(b, x.b, corner.j, p0);
    __syncthreads();
    for (int p = 0; p < kSquare; ++p) sum += a[threadIdx.y][p] * b[threadIdx.x][p];
    __syncthreads();  // before the next tiles
  }
  const int64_t i = corner.i + threadIdx.y, j = corner.j + threadIdx.x;
  if (i < x.m() && j < x.n()) finish(epilogue, i, j, sum);
}

struct Tiled {
  template <class T, class B, class Epilogue, class Stream>
  static void run(const Product<T, B>& x, const Epilogue& epilogue, const Stream& stream) {
    launch(tiled_kernel<T, B, Epilogue>,
           {.grid_x = tiles<kSquare, kSquare>(x.m(), x.n()),
            .threads_x = kSquare,
            .threads_y = kSquare},
           stream, x, epilogue);
  }
};

}  // namespace
}  // namespace orthofed::gpu
