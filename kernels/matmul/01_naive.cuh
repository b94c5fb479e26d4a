// 1, naive: one thread sums one element of C, as the definition says. Neighbouring threads take
// neighbouring columns, so that a warp's stores are contiguous. Both factors of every product come
// from memory (or cache): 8 bytes for 2 flops in fp32.
#pragma once
#include "kernels/matmul/epilogue.cuh"

namespace orthofed::gpu {
namespace {

template <class T, class B, class Epilogue>
__global__ void naive_kernel(Product<T, B> x, Epilogue epilogue) {
  const Corner corner = tile_corner<4, 32>(x.n());
  const int64_t i = corner.i + threadIdx.y, j = corner.j + threadIdx.x;
  if (i >= x.m() || j >= x.n()) return;
  float sum = 0;
  for (int64_t p = 0; p < x.k(); ++p) sum += x.a(i, p) * x.b(j, p);
  finish(epilogue, i, j, sum);
}

struct Naive {
  template <class T, class B, class Epilogue, class Stream>
  static void run(const Product<T, B>& x, const Epilogue& epilogue, const Stream& stream) {
    launch(naive_kernel<T, B, Epilogue>,
           {.grid_x = tiles<4, 32>(x.m(), x.n()), .threads_x = 32, .threads_y = 4}, stream, x,
           epilogue);
  }
};

}  // namespace
}  // namespace orthofed::gpu
