// 6, wgmma: on Hopper (compute capability 9.0), one thread has the copy engine fetch tiles of 64
// deep into a ring of three stages, and two warpgroups multiply, 64 x 256 of C each, by
// instructions that read both operands from shared memory, so that neither instructions nor
// registers go into addresses, loads and fragments; blocks stay for many tiles, and the next one's
// operands arrive while this one's results are written.
//
// bf16, and operands the copy engine can read: base and pitch a multiple of 16 bytes. Who may start
// is told by mbarriers: full[s], a stage's bytes are there; empty[s], all eight multiplying warps
// are done with it. A tail comes through the same ring into the same registers; its stage is
// fetched in full width (zeros beyond the ranks cost no traffic), and multiplied in as many steps
// of 16 as the tile's columns need. As in version 5, a tile keeps the order of its matrix in
// memory, and the instruction is told which one that is.
#pragma once
#include <algorithm>

#include "kernels/core/tma.cuh"
#include "kernels/core/wgmma.cuh"
#include "kernels/matmul/epilogue.cuh"

namespace orthofed::gpu {
namespace {

struct Wgmma {
  static constexpr int kTileM = 128, kTileN = 256, kStep = 64, kStages = 3;
  static constexpr int kConsumers = 256, kThreads = kConsumers + 128;
  static constexpr int kStageBytes = (kTileM + kTileN) * kStep * int(sizeof(bf16));
  // 65,536 registers for 384 threads are 168 each at the start.
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
  static_assert(128 * kProducerRegisters + kConsumers * kConsumerRegisters <= 65536);

  struct Shared {
    bf16 a[kStages][kTileM * kStep];
    bf16 b[kStages][kTileN * kStep];
    float sums[SumTile::kFloats];
    Mbarrier full[kStages], empty[kStages], consumers;
  };
  static_assert(sizeof(Shared) <= 227 * 1024);

  template <class AnyTail, class Stream>
  static bool applies(const Product<bf16, bf16>& x, const AnyTail& tail, const Stream& stream) {
    if constexpr (AnyTail::kThere)
      if (!tail.u.packs || !tail.v.packs) return false;
    return has_hopper(stream) && x.m() > 0 && x.n() > 0 && x.k() > 0 && x.a.packs && x.b.packs;
  }
  template <class AnyTail, class Epilogue, class Stream>
  static void run(const Product<bf16, bf16>& x, const AnyTail& tail, const Epilogue& epilogue,
                  const Stream& stream);
};

// kSide x 64 elements of an operand in shared memory: [kSide, 64] if it lies along k, else
// [64, kSide] as kSide / 64 boxes of [64, 64].
template <bool kAlongK, int kSide>
struct WgmmaTile {
  static constexpr int kBox = 64 * Wgmma::kStep;  // elements

  static TensorMap map(const Operand<bf16>& x) {
    return tensor_map<bf16, 2>({x.data, {x.cols, x.rows}, {x.ld}}, {64, kAlongK ? kSide : 64},
                               /*swizzle=*/true);
  }

  // Starts to copy X[i0 .. i0 + kSide - 1, p0 .. p0 + 63].
  static __device__ void load(bf16* tile, const TensorMap& map, Mbarrier& full, int i0, int p0) {
    if constexpr (kAlongK) {
      tma_load(tile, map, full, p0, i0);
    } else {
#pragma unroll
      for (int q = 0; q < kSide / 64; ++q) tma_load(tile + q * kBox, map, full, i0 + 64 * q, p0);
    }
  }

  // Of X[i .., p .. p + 15] in the tile; i a multiple of 64, p of 16.
  static __device__ uint64_t descriptor(const bf16* tile, unsigned i, unsigned p) {
    constexpr uint32_t kAtom = 1024, kBoxBytes = kBox * sizeof(bf16);
    return wgmma_descriptor(shared_address(tile + i * 64 + (kAlongK ? p : p * 64)), kAtom,
                            kBoxBytes);
  }
};

// What the copy engine reads.
template <class AnyTail>
struct WgmmaMaps {
  TensorMap a, b;
  template <class TileA, class TileB>
  static WgmmaMaps of(const Product<bf16, bf16>& x, const AnyTail&) {
    return {TileA::map(x.a), TileB::map(x.b)};
  }
};
template <>
struct WgmmaMaps<Tail> {
  TensorMap a, b, u, v;
  template <class TileA, class TileB>
  static WgmmaMaps of(const Product<bf16, bf16>& x, const Tail& tail) {
    return {TileA::map(x.a), TileB::map(x.b), TileA::map(tail.u), TileB::map(tail.v)};
  }
};

// Where a warpgroup is in the ring: the stage, and the parity of its present round.
template <int kStages>
struct WgmmaRing {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void next() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// What a block works through: the tiles of C, this block's by strides of the grid.
struct WgmmaWork {
  int64_t m, n, k;
  unsigned tiles;
  __device__ unsigned steps() const { return unsigned(ceil_div(k, Wgmma::kStep)); }
};

template <class TileA, class TileB, class AnyTail>
__device__ void wgmma_produce(Wgmma::Shared& shared, const WgmmaMaps<AnyTail>& maps,
                              const WgmmaWork& work, const AnyTail& tail) {
  using R = Wgmma;
  WgmmaRing<R::kStages> ring;
  const unsigned steps = work.steps();
  for (unsigned tile = blockIdx.x; tile < work.tiles; tile += gridDim.x) {
    const Corner corner = tile_corner<R::kTileM, R::kTileN>(work.n, tile);
    const auto fetch = [&](const TensorMap& a, const TensorMap& b, int p) {
      mbarrier_wait(shared.empty[ring.stage], ring.parity ^ 1);  // at once in the first round
      Mbarrier& full = shared.full[ring.stage];
      mbarrier_arrive_expect(full, R::kStageBytes);
      TileA::load(shared.a[ring.stage], a, full, int(corner.i), p);
      TileB::load(shared.b[ring.stage], b, full, int(corner.j), p);
      ring.next();
    };
    for (unsigned step = 0; step < steps; ++step) fetch(maps.a, maps.b, int(step) * R::kStep);
    if constexpr (AnyTail::kThere) {
      const Ranks ranks = tail_ranks(tail, corner.j, R::kTileN);
      for (int64_t r = ranks.begin; r < ranks.end; r += R::kStep) fetch(maps.u, maps.v, int(r));
    }
  }
}

template <bool kAAlongK, bool kBAlongK, class AnyTail, class Epilogue>
__device__ void wgmma_consume(Wgmma::Shared& shared, const WgmmaWork& work, const AnyTail& tail,
                              const Epilogue& epilogue, bool packs) {
  using R = Wgmma;
  using TileA = WgmmaTile<kAAlongK, R::kTileM>;
  using TileB = WgmmaTile<kBAlongK, R::kTileN>;
  const unsigned group = threadIdx.x / 128, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const auto release = [&](int stage) {
    if (lane == 0) mbarrier_arrive(shared.empty[stage]);
  };
  uint32_t met = 0;
  const auto meet = [&] {  // a barrier of the consumers
    mbarrier_arrive(shared.consumers);
    mbarrier_wait(shared.consumers, met);
    met ^= 1;
  };

  WgmmaRing<R::kStages> ring;
  const unsigned steps = work.steps();
  for (unsigned tile = blockIdx.x; tile < work.tiles; tile += gridDim.x) {
    const Corner corner = tile_corner<R::kTileM, R::kTileN>(work.n, tile);
    float sum[R::kTileN / 2] = {};  // of rows 64 group to 64 group + 63
    int before = -1;                // the stage that is being read
    const auto multiply = [&](unsigned p) {
      wgmma<!kAAlongK, !kBAlongK>(sum, TileA::descriptor(shared.a[ring.stage], 64 * group, p),
                                  TileB::descriptor(shared.b[ring.stage], 0, p));
    };
    const auto work_off_stage = [&](const auto& products) {
      mbarrier_wait(shared.full[ring.stage], ring.parity);
      wgmma_fence();
      products();
      wgmma_commit();
      wgmma_wait<1>();  // one step is under way at any time
      if (before >= 0) release(before);
      before = ring.stage;
      ring.next();
    };
    for (unsigned step = 0; step < steps; ++step)
      work_off_stage([&] {
#pragma unroll
        for (unsigned p = 0; p < R::kStep; p += 16) multiply(p);
      });
    const Ranks ranks = tail_ranks(tail, corner.j, R::kTileN);
    for (int64_t r = ranks.begin; r < ranks.end; r += R::kStep)
      work_off_stage([&] {
#pragma unroll 1
        for (unsigned p = 0; p < R::kStep && r + p < ranks.end; p += 16) {
          wgmma_fence();
          multiply(p);
        }
      });
    wgmma_wait<0>(sum);
    release(before);

    // The tile of sums is as wide as half of these.
#pragma unroll
    for (unsigned half = 0; half < 2; ++half) {
      meet();  // the last sums have been read
#pragma unroll
      for (unsigned c = 0; c < 16; ++c) {
        const unsigned i = 16 * warp + lane / 4, j = 8 * c + lane % 4 * 2;
        const float* const d = sum + 64 * half + 4 * c;
        store_pack(shared.sums + SumTile::at(i, j), Pack<float, 2>{{d[0], d[1]}});
        store_pack(shared.sums + SumTile::at(i + 8, j), Pack<float, 2>{{d[2], d[3]}});
      }
      meet();
      SumTile::write<R::kConsumers>(shared.sums, {corner.i, corner.j + SumTile::kSide * half},
                                    work.m, work.n, packs, epilogue);
    }
  }
}

template <bool kAAlongK, bool kBAlongK, class AnyTail, class Epilogue>
__global__ void __launch_bounds__(Wgmma::kThreads, 1)
    wgmma_kernel(const __grid_constant__ WgmmaMaps<AnyTail> maps, WgmmaWork work, AnyTail tail,
                 Epilogue epilogue, bool packs) {
  if constexpr (!kHopperCode) {
    __trap();
  } else {
    using R = Wgmma;
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
      if (threadIdx.x < R::kConsumers + 32 && elect_one())
        wgmma_produce<WgmmaTile<kAAlongK, R::kTileM>, WgmmaTile<kBAlongK, R::kTileN>>(shared, maps,
                                                                                      work, tail);
    } else {
      grow_registers<R::kConsumerRegisters>();
      wgmma_consume<kAAlongK, kBAlongK>(shared, work, tail, epilogue, packs);
    }
  }
}

template <bool kAAlongK, bool kBAlongK, class AnyTail, class Epilogue, class Stream>
void launch_wgmma(const Product<bf16, bf16>& x, const AnyTail& tail, const Epilogue& epilogue,
                  const Stream& stream) {
  using R = Wgmma;
  using TileA = WgmmaTile<kAAlongK, R::kTileM>;
  using TileB = WgmmaTile<kBAlongK, R::kTileN>;
  const WgmmaWork work{x.m(), x.n(), x.k(), tiles<R::kTileM, R::kTileN>(x.m(), x.n())};
  launch(wgmma_kernel<kAAlongK, kBAlongK, AnyTail, Epilogue>,
         {.grid_x = std::min(work.tiles, multiprocessors(stream)),
          .threads_x = R::kThreads,
          .shared_bytes = sizeof(R::Shared)},
         stream, WgmmaMaps<AnyTail>::template of<TileA, TileB>(x, tail), work, tail, epilogue,
         epilogue.packs());
}

template <class AnyTail, class Epilogue, class Stream>
void Wgmma::run(const Product<bf16, bf16>& x, const AnyTail& tail, const Epilogue& epilogue,
                const Stream& stream) {
  OF_CHECK(applies(x, tail, stream),
           "matmul, version 6: not on this device or not at this alignment");
  if constexpr (!Epilogue::kLayer && !AnyTail::kThere)
    if (!x.a.along_k)
      return x.b.along_k ? launch_wgmma<false, true>(x, tail, epilogue, stream)
                         : launch_wgmma<false, false>(x, tail, epilogue, stream);
  return x.b.along_k ? launch_wgmma<true, true>(x, tail, epilogue, stream)
                     : launch_wgmma<true, false>(x, tail, epilogue, stream);
}

}  // namespace
}  // namespace orthofed::gpu
