// 2, wgmma: Hopper's own FP8 instruction, at twice bf16's rate, fed as in version 6 of matmul: one
// thread has the copy engine fetch tiles into a ring of four stages, two warpgroups multiply, 64 x
// 128 of C each, and blocks stay for many tiles.
//
// A stage is 128 deep, and that is how far the tensor core sums by itself: a warpgroup then adds
// its sums to those in float (DeepSeek-V3, arXiv 2412.19437, section 3.3.2, has the interval),
// while the other one multiplies. Both sets of sums are why a tile is 128 wide and not 256.
//
// Ring, barriers and epilogue are those of version 6, to which kernels/matmul/06_wgmma.cuh is the
// introduction.
#pragma once
#include <algorithm>

#include "kernels/matmul/06_wgmma.cuh"
#include "kernels/matmul_fp8/operands.cuh"

namespace orthofed::gpu {
namespace {

struct Fp8Wgmma {
  static constexpr int kTile = SumTile::kSide, kStep = 64, kStages = 4;  // a step: 64 pairs
  static constexpr int kConsumers = 256, kThreads = kConsumers + 128;
  static constexpr int kOperand = kTile * kStep;  // pairs
  static constexpr int kStageBytes = 2 * kOperand * int(sizeof(bf16));
  // 65,536 registers for 384 threads are 168 each at the start.
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  using Tile = WgmmaTile<true, kTile>;
  static_assert(kStep == Wgmma::kStep, "a tile is as long as those of bf16");

  struct Shared {
    bf16 a[kStages][kOperand], b[kStages][kOperand];
    float sums[SumTile::kFloats];
    Mbarrier full[kStages], empty[kStages], consumers;
  };
  static_assert(sizeof(Shared) <= 227 * 1024);

  template <class Stream>
  static bool applies(const Product<bf16, bf16>& pairs, const Stream& stream) {
    return has_hopper(stream) && pairs.m() > 0 && pairs.n() > 0 && pairs.k() > 0;
  }
  template <class Epilogue, class Stream>
  static void run(const Product<bf16, bf16>& pairs, const Epilogue& epilogue, const Stream& stream);
};

__device__ inline void fp8_produce(Fp8Wgmma::Shared& shared, const TensorMap& map_a,
                                   const TensorMap& map_b, const WgmmaWork& work) {
  using R = Fp8Wgmma;
  WgmmaRing<R::kStages> ring;
  const unsigned steps = work.steps();
  for (unsigned tile = blockIdx.x; tile < work.tiles; tile += gridDim.x) {
    const Corner corner = tile_corner<R::kTile, R::kTile>(work.n, tile);
    for (unsigned step = 0; step < steps; ++step, ring.next()) {
      mbarrier_wait(shared.empty[ring.stage], ring.parity ^ 1);  // at once in the first round
      Mbarrier& full = shared.full[ring.stage];
      mbarrier_arrive_expect(full, R::kStageBytes);
      R::Tile::load(shared.a[ring.stage], map_a, full, int(corner.i), int(step) * R::kStep);
      R::Tile::load(shared.b[ring.stage], map_b, full, int(corner.j), int(step) * R::kStep);
    }
  }
}

template <class Epilogue>
__device__ void fp8_consume(Fp8Wgmma::Shared& shared, const WgmmaWork& work,
                            const Epilogue& epilogue, bool packs) {
  using R = Fp8Wgmma;
  const unsigned group = threadIdx.x / 128, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint32_t met = 0;
  const auto meet = [&] {  // a barrier of the consumers
    mbarrier_arrive(shared.consumers);
    mbarrier_wait(shared.consumers, met);
    met ^= 1;
  };

  WgmmaRing<R::kStages> ring;
  const unsigned steps = work.steps();
  for (unsigned tile = blockIdx.x; tile < work.tiles; tile += gridDim.x) {
    float sum[64] = {}, of_128[64] = {};  // of rows 64 group to 64 group + 63
    for (unsigned step = 0; step < steps; ++step, ring.next()) {
      mbarrier_wait(shared.full[ring.stage], ring.parity);
      wgmma_fence();
#pragma unroll
      for (unsigned p = 0; p < R::kStep; p += 16)
        wgmma_e4m3(of_128, R::Tile::descriptor(shared.a[ring.stage], 64 * group, p),
                   R::Tile::descriptor(shared.b[ring.stage], 0, p), /*add=*/p > 0);
      wgmma_commit();
      wgmma_wait<0>(of_128);
      if (lane == 0) mbarrier_arrive(shared.empty[ring.stage]);
#pragma unroll
      for (int d = 0; d < 64; ++d) sum[d] += of_128[d];
    }

    meet();  // the last tile's sums have been read
#pragma unroll
    for (unsigned c = 0; c < 16; ++c) {
      const unsigned i = 16 * warp + lane / 4, j = 8 * c + lane % 4 * 2;
      const float* const d = sum + 4 * c;
      store_pack(shared.sums + SumTile::at(i, j), Pack<float, 2>{{d[0], d[1]}});
      store_pack(shared.sums + SumTile::at(i + 8, j), Pack<float, 2>{{d[2], d[3]}});
    }
    meet();
    SumTile::write<R::kConsumers>(shared.sums, tile_corner<R::kTile, R::kTile>(work.n, tile),
                                  work.m, work.n, packs, epilogue);
  }
}

template <class Epilogue>
__global__ void __launch_bounds__(Fp8Wgmma::kThreads, 1)
    fp8_wgmma_kernel(const __grid_constant__ TensorMap map_a,
                     const __grid_constant__ TensorMap map_b, WgmmaWork work, Epilogue epilogue,
                     bool packs) {
  if constexpr (!kHopperCode) {
    __trap();
  } else {
    using R = Fp8Wgmma;
    R::Shared& shared = *dynamic_shared<R::Shared>();
    if (threadIdx.x == 0) {
      for (int s = 0; s < R::kStages; ++s) {
        mbarrier_init(shared.full[s], 1);
        mbarrier_init(shared.empty[s], R::kConsumers / 32);
      }
      mbarrier_init(shared.consumers, R::kConsumers);
      mbarrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x >= R::kConsumers) {
      shrink_registers<R::kProducerRegisters>();
      if (threadIdx.x < R::kConsumers + 32 && elect_one()) fp8_produce(shared, map_a, map_b, work);
    } else {
      grow_registers<R::kConsumerRegisters>();
      fp8_consume(shared, work, epilogue, packs);
    }
  }
}

template <class Epilogue, class Stream>
void Fp8Wgmma::run(const Product<bf16, bf16>& pairs, const Epilogue& epilogue,
                   const Stream& stream) {
  OF_CHECK(applies(pairs, stream), "matmul_fp8, version 2: not on this device");
  const WgmmaWork work{pairs.m(), pairs.n(), pairs.k(),
                       gpu::tiles<kTile, kTile>(pairs.m(), pairs.n())};
  launch(fp8_wgmma_kernel<Epilogue>,
         {.grid_x = std::min(work.tiles, multiprocessors(stream)),
          .threads_x = kThreads,
          .shared_bytes = sizeof(Shared)},
         stream, Tile::map(pairs.a), Tile::map(pairs.b), work, epilogue, epilogue.packs());
}

}  // namespace
}  // namespace orthofed::gpu
