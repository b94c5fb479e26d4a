// 5, mma: tensor cores multiply 16 x 8 x 16 at a time in bf16 with float sums, a warp 64 x 64 of C
// in registers; four stages of tiles are on their way by cp.async, without a detour through
// registers, while one is multiplied; tiles lie swizzled, so that ldmatrix and cp.async meet no
// bank twice.
//
// A tail's steps follow the product's, into the same registers; of the last one only the half that
// has ranks in it is multiplied.
//
// A tile keeps the order of its matrix in memory. ldmatrix transposes where that order is the other
// one, so all four storage orders cost the same.
#pragma once
#include "kernels/core/mma.cuh"
#include "kernels/matmul/epilogue.cuh"

namespace orthofed::gpu {
namespace {

struct Mma {
  static constexpr int kTile = SumTile::kSide, kStep = 32, kStages = 4, kThreads = 128;
  static constexpr int kOperand = kTile * kStep;  // elements of a tile of A or B
  static constexpr size_t kSharedBytes = kStages * 2 * kOperand * sizeof(bf16);
  static_assert(kSharedBytes >= SumTile::kFloats * sizeof(float), "the sums take the tiles' place");

  template <class AnyTail, class Epilogue, class Stream>
  static void run(const Product<bf16, bf16>& x, const AnyTail& tail, const Epilogue& epilogue,
                  const Stream& stream);
};

// A tile in shared memory: [128, 32] of an operand along k, [32, 128] of the other kind, in chunks
// of 8 elements (16 bytes). Chunks of a row are permuted by the row's number such that 8 rows of
// one column of chunks, which ldmatrix reads together, fill all 32 banks.
template <bool kAlongK>
struct MmaTile {
  static constexpr unsigned kChunks = (kAlongK ? Mma::kStep : Mma::kTile) / 8;  // 4 or 16 a row
  static constexpr OF_HOST_DEVICE unsigned at(unsigned row, unsigned chunk) {
    return (row * kChunks + (chunk ^ (kAlongK ? row / 2 % 4 : row % 8))) * 8;
  }

  // Starts to copy X[i0 .. i0 + 127, p0 .. p0 + 31].
  static __device__ void fill(bf16* tile, const Operand<bf16>& x, int64_t i0, int64_t p0) {
    constexpr unsigned kRows = Mma::kThreads / kChunks;  // that the block copies at a time
    const unsigned row = threadIdx.x / kChunks, chunk = threadIdx.x % kChunks;
    const int64_t from_row = (kAlongK ? i0 : p0) + row, col = (kAlongK ? p0 : i0) + chunk * 8;
    if (x.packs) {
      const bf16* from = x.data + from_row * x.ld + col;
      const int64_t left = x.cols - col;
      const int bytes = left < 8 ? (left < 0 ? 0 : int(left) * 2) : 16;
#pragma unroll
      for (unsigned r = 0; r < Mma::kOperand / 8 / kChunks; r += kRows) {
        const bool inside = bytes > 0 && from_row + r < x.rows;
        cp_async_16(tile + at(row + r, chunk), inside ? from + r * x.ld : x.data,
                    inside ? bytes : 0);
      }
    } else {
#pragma unroll 1
      for (unsigned r = 0; r < Mma::kOperand / 8 / kChunks; r += kRows)
        store_pack(tile + at(row + r, chunk), x.template load<8>(from_row + r, col));
    }
  }

  // X[i .. i + 15, p .. p + 15] as four 8 x 8 fragments, in the order in which an A of mma_16x8x16
  // takes them (down i first) or two Bs do (along p first). A lane names one row of eight.
  static __device__ void fragments_of_a(uint32_t (&registers)[4], const bf16* tile, unsigned i,
                                        unsigned p) {
    const unsigned fragment = threadIdx.x % 32 / 8;
    load(registers, tile, i + fragment % 2 * 8, p + fragment / 2 * 8);
  }
  static __device__ void fragments_of_b(uint32_t (&registers)[4], const bf16* tile, unsigned i,
                                        unsigned p) {
    const unsigned fragment = threadIdx.x % 32 / 8;
    load(registers, tile, i + fragment / 2 * 8, p + fragment % 2 * 8);
  }

 private:
  static __device__ void load(uint32_t (&registers)[4], const bf16* tile, unsigned i, unsigned p) {
    const unsigned row = threadIdx.x % 8;
    if constexpr (kAlongK)
      ldmatrix_x4(registers, tile + at(i + row, p / 8));
    else
      ldmatrix_x4_trans(registers, tile + at(p + row, i / 8));
  }
};

template <bool kAAlongK, bool kBAlongK, class AnyTail, class Epilogue>
__global__ void __launch_bounds__(Mma::kThreads, 2)
    mma_kernel(Product<bf16, bf16> x, AnyTail tail, Epilogue epilogue, bool packs) {
  using R = Mma;
  using TileA = MmaTile<kAAlongK>;
  using TileB = MmaTile<kBAlongK>;
  bf16* const shared = dynamic_shared<bf16>();
  const Corner corner = tile_corner<R::kTile, R::kTile>(x.n());
  const Ranks ranks = tail_ranks(tail, corner.j, R::kTile);
  const int64_t main_steps = ceil_div(x.k(), R::kStep);
  const int64_t steps = main_steps + ceil_div(ranks.end - ranks.begin, R::kStep);
  const auto rank_of = [&](int64_t step) { return ranks.begin + (step - main_steps) * R::kStep; };
  const auto tile_a = [&](int64_t step) { return shared + step % R::kStages * 2 * R::kOperand; };
  const auto start = [&](int64_t step) {  // one group of copies a step, empty beyond the end
    if (step < main_steps) {
      TileA::fill(tile_a(step), x.a, corner.i, step * R::kStep);
      TileB::fill(tile_a(step) + R::kOperand, x.b, corner.j, step * R::kStep);
    } else if constexpr (AnyTail::kThere) {
      if (step < steps) {
        TileA::fill(tile_a(step), tail.u, corner.i, rank_of(step));
        TileB::fill(tile_a(step) + R::kOperand, tail.v, corner.j, rank_of(step));
      }
    }
    cp_async_commit();
  };

  // Four warps, 64 x 64 each.
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const unsigned warp_i = warp / 2 * 64, warp_j = warp % 2 * 64;
  const bool outside = corner.i + warp_i >= x.m() || corner.j + warp_j >= x.n();
  float sum[4][8][4] = {};  // [m / 16, n / 8, registers of D]
  for (int stage = 0; stage < R::kStages - 1; ++stage) start(stage);
  const auto multiply = [&](int64_t step, int64_t depth) {
    cp_async_wait<R::kStages - 2>();
    __syncthreads();  // this step's tiles are there, and nobody reads the last step's any more
    start(step + R::kStages - 1);
    if (outside) return;
    const bf16 *a = tile_a(step), *b = a + R::kOperand;
#pragma unroll
    for (unsigned p = 0; p < R::kStep; p += 16) {
      if (p >= depth) break;
      uint32_t part_a[4][4], part_b[4][4];
#pragma unroll
      for (unsigned q = 0; q < 4; ++q) {
        TileA::fragments_of_a(part_a[q], a, warp_i + 16 * q, p);
        TileB::fragments_of_b(part_b[q], b, warp_j + 16 * q, p);
      }
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          const uint32_t column[2] = {part_b[c / 2][c % 2 * 2], part_b[c / 2][c % 2 * 2 + 1]};
          mma_16x8x16(sum[r][c], part_a[r], column);
        }
    }
  };
  for (int64_t step = 0; step < main_steps; ++step) multiply(step, R::kStep);
  for (int64_t step = main_steps; step < steps; ++step) multiply(step, ranks.end - rank_of(step));
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
  SumTile::write<R::kThreads>(sums, corner, x.m(), x.n(), packs, epilogue);
}

template <class AnyTail, class Epilogue, class Stream>
void Mma::run(const Product<bf16, bf16>& x, const AnyTail& tail, const Epilogue& epilogue,
              const Stream& stream) {
  auto kernel = x.b.along_k ? mma_kernel<true, true, AnyTail, Epilogue>
                            : mma_kernel<true, false, AnyTail, Epilogue>;
  if constexpr (!Epilogue::kLayer && !AnyTail::kThere)
    if (!x.a.along_k)
      kernel = x.b.along_k ? mma_kernel<false, true, AnyTail, Epilogue>
                           : mma_kernel<false, false, AnyTail, Epilogue>;
  launch(kernel,
         {.grid_x = tiles<kTile, kTile>(x.m(), x.n()),
          .threads_x = kThreads,
          .shared_bytes = kSharedBytes},
         stream, x, tail, epilogue, epilogue.packs());
}

}  // namespace
}  // namespace orthofed::gpu
