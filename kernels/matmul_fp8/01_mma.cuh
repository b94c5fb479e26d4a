// 1, mma: version 5 of matmul with the FP8 instruction in its middle; a pair of neighbours along k
// goes through shared memory as one bf16 would, so its tiles, stages and addresses serve as they
// are, at half the bytes a product.
//
// Each instruction sums 32 products by itself, and its sums are added in float: four additions for
// 4,096 products, and what the tensor core's short sums lose does not grow with k.
//
// It is for 8.9 (Ada) and 12.0, for which ptxas 13.0 makes one instruction of it (QMMA). For 9.0
// and 10.0 it makes conversions to f16 and two products of that, so that only bytes are saved
// there; hence version 2 for Hopper.
#pragma once
#include "kernels/matmul/05_mma.cuh"
#include "kernels/matmul_fp8/operands.cuh"

namespace orthofed::gpu {
namespace {

template <class Epilogue>
__global__ void __launch_bounds__(Mma::kThreads, 2)
    fp8_mma_kernel(Product<bf16, bf16> pairs, Epilogue epilogue, bool packs) {
  using R = Mma;
  using Tile = MmaTile<true>;
  pairs.a.packs = pairs.b.packs = true;  // as is checked: the compiler drops the other way
  bf16* const shared = dynamic_shared<bf16>();
  const Corner corner = tile_corner<R::kTile, R::kTile>(pairs.n());
  __shared__ Corner kept;  // until the end, where registers are not: the main loop has them all
  if (threadIdx.x == 0) kept = corner;
  const int steps = int(ceil_div(pairs.k(), R::kStep));
  const auto tile_a = [&](int step) { return shared + step % R::kStages * 2 * R::kOperand; };
  const auto start = [&](int step) {  // one group of copies a step, empty beyond the end
    if (step < steps) {
      Tile::fill(tile_a(step), pairs.a, corner.i, step * R::kStep);
      Tile::fill(tile_a(step) + R::kOperand, pairs.b, corner.j, step * R::kStep);
    }
    cp_async_commit();
  };

  // Four warps, 64 x 64 each.
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const unsigned warp_i = warp / 2 * 64, warp_j = warp % 2 * 64;
  const bool outside = corner.i + warp_i >= pairs.m() || corner.j + warp_j >= pairs.n();
  float sum[4][8][4] = {};  // [m / 16, n / 8, registers of D]
  for (int stage = 0; stage < R::kStages - 1; ++stage) start(stage);
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<R::kStages - 2>();
    __syncthreads();  // this step's tiles are there, and nobody reads the last step's any more
    start(step + R::kStages - 1);
    if (outside) continue;
    const bf16 *a = tile_a(step), *b = a + R::kOperand;
#pragma unroll 1
    for (unsigned p = 0; p < R::kStep; p += 16) {
      uint32_t part_a[4][4];
#pragma unroll
      for (unsigned q = 0; q < 4; ++q) Tile::fragments_of_a(part_a[q], a, warp_i + 16 * q, p);
#pragma unroll
      for (unsigned q = 0; q < 4; ++q) {
        uint32_t part_b[4];  // two columns of fragments
        Tile::fragments_of_b(part_b, b, warp_j + 16 * q, p);
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const uint32_t column[2] = {part_b[2 * c], part_b[2 * c + 1]};
            float of_32[4];
            mma_16x8x32(of_32, part_a[r], column);
#pragma unroll
            for (int d = 0; d < 4; ++d) sum[r][2 * q + c][d] += of_32[d];
          }
      }
    }
  }
  __syncthreads();  // the sums take the tiles' place

  float* const sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (unsigned r = 0; r < 4; ++r)
#pragma unroll
    for (unsigned c = 0; c < 8; ++c) {
      const unsigned i = warp_i + 16 * r + lane / 4, j = warp_j + 8 * c + lane % 4 * 2;
      store_pack(sums + SumTile::at(i, j), Pack<float, 2>{{sum[r][c][0], sum[r][c][1]}});
      store_pack(sums + SumTile::at(i + 8, j), Pack<float, 2>{{sum[r][c][2], sum[r][c][3]}});
    }
  __syncthreads();
  SumTile::write<R::kThreads>(sums, kept, pairs.m(), pairs.n(), packs, epilogue);
}

struct Fp8Mma {
  template <class Epilogue, class Stream>
  static void run(const Product<bf16, bf16>& pairs, const Epilogue& epilogue,
                  const Stream& stream) {
    OF_CHECK(has_fp8(stream), "FP8 products need compute capability 8.9");
    launch(fp8_mma_kernel<Epilogue>,
           {.grid_x = tiles<Mma::kTile, Mma::kTile>(pairs.m(), pairs.n()),
            .threads_x = Mma::kThreads,
            .shared_bytes = Mma::kSharedBytes},
           stream, pairs, epilogue, epilogue.packs());
  }
};

}  // namespace
}  // namespace orthofed::gpu
