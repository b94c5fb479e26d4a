// The emulator's Hopper: mbarriers, bulk tensor copies and warpgroup products compute what PTX
// says, in every schedule, and kernels that are wrong on purpose are found out.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/core/tma.cuh"
#include "kernels/core/wgmma.cuh"
#include "tests/support/buffer.h"
#include "tests/support/random.h"
#include "tests/support/simt.h"

namespace orthofed::test {
namespace {

using gpu::Mbarrier;
using gpu::Tensor;
using gpu::tensor_map;
using gpu::TensorMap;

simt::Stream hopper(simt::Stream stream) {
  stream.capability = 90;
  return stream;
}
template <class F>
void for_each_hopper(F&& body) {
  for_each_schedule([&](const simt::Stream& stream) { body(hopper(stream)); });
}
template <class... P, class... A>
void launch(void (*kernel)(P...), unsigned threads, size_t shared_bytes, const simt::Stream& stream,
            const A&... args) {
  gpu::launch(kernel, {.threads_x = threads, .shared_bytes = shared_bytes}, stream, args...);
}

// Initialised by thread 0, ready for all.
__device__ void init(Mbarrier& barrier, uint32_t arrivals) {
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, arrivals);
    gpu::mbarrier_init_fence();
  }
  __syncthreads();
}

// --- mbarrier ---------------------------------------------------------------------------------

// The first warp sends numbers through a slot of shared memory; the second adds them up.
struct Channel {
  int slot[32];
  Mbarrier full, empty;
};
__global__ void channel_kernel(int rounds, uint32_t first_parity, int* out) {
  auto& shared = *gpu::dynamic_shared<Channel>();
  init(shared.full, 32);
  init(shared.empty, 32);
  const unsigned lane = threadIdx.x % 32;
  int sum = 0;
  for (int round = 0; round < rounds; ++round) {
    const uint32_t parity = uint32_t(round) % 2;
    if (threadIdx.x < 32) {
      mbarrier_wait(shared.empty, parity ^ 1);
      shared.slot[lane] = 100 * round + int(lane);
      mbarrier_arrive(shared.full);
    } else {
      mbarrier_wait(shared.full, parity ^ first_parity);
      sum += shared.slot[31 - lane];
      mbarrier_arrive(shared.empty);
    }
  }
  if (threadIdx.x >= 32) out[lane] = sum;
}

TEST(Mbarrier, PassesValuesFromWarpToWarp) {
  for_each_hopper([](const simt::Stream& stream) {
    std::vector<int> out(32);
    launch(channel_kernel, 64, sizeof(Channel), stream, 5, 0u, out.data());
    for (int lane = 0; lane < 32; ++lane) EXPECT_EQ(out[size_t(lane)], 1000 + 5 * (31 - lane));
  });
}

#if !defined(__SANITIZE_THREAD__)  // which would report the race
TEST(MbarrierFault, AWaitForTheWrongParity) {
  for_each_hopper([](const simt::Stream& stream) {
    std::vector<int> out(32);
    const std::string fault =
        fault_of([&] { launch(channel_kernel, 64, sizeof(Channel), stream, 5, 1u, out.data()); });
    EXPECT_TRUE(contains(fault, "the block hangs"));
    EXPECT_TRUE(contains(fault, "waits in mbarrier_wait"));
    EXPECT_TRUE(contains(fault, "lacks"));
  });
}
#endif

enum class Misuse { uninitialised, invalidated, too_many_arrivals, no_arrivals, old_device };
__global__ void misuse_kernel(Misuse misuse) {
  auto& barrier = *gpu::dynamic_shared<Mbarrier>();
  if (misuse == Misuse::old_device) gpu::elect_one();
  if (misuse != Misuse::uninitialised) init(barrier, misuse == Misuse::no_arrivals ? 0 : 2);
  if (misuse == Misuse::invalidated) mbarrier_inval(barrier);
  // The third arrival of a phase that waits for bytes.
  mbarrier_arrive_expect(barrier, threadIdx.x == 0 ? 16 : 0);
}

TEST(MbarrierFault, Misuse) {
  const auto fault = [](Misuse misuse, const simt::Stream& stream = hopper(kForward)) {
    return fault_of([&] { launch(misuse_kernel, 3, sizeof(Mbarrier), stream, misuse); });
  };
  EXPECT_TRUE(contains(fault(Misuse::uninitialised), "nobody has initialised"));
  EXPECT_TRUE(contains(fault(Misuse::invalidated), "nobody has initialised"));
  EXPECT_TRUE(contains(fault(Misuse::too_many_arrivals), "more arrivals"));
  EXPECT_TRUE(contains(fault(Misuse::no_arrivals), "1 to 2^20 - 1"));
  EXPECT_TRUE(contains(fault(Misuse::old_device, kForward), "the emulated device has 8.0"));
}

__global__ void elect_kernel(int* out) {
  if (gpu::elect_one()) atomicAdd(&out[threadIdx.x / 32], 1);
}

TEST(Hopper, ElectsOneLaneOfEveryWarp) {
  for_each_hopper([](const simt::Stream& stream) {
    std::vector<int> out(3);
    launch(elect_kernel, 64 + 7, 0, stream, out.data());
    EXPECT_EQ(out, std::vector<int>(3, 1));
  });
}

// --- Bulk tensor copies -----------------------------------------------------------------------

enum class CopyBug {
  none,
  announces_too_little,
  announces_nothing,
  no_wait,
  no_fence,
  unaligned,
  too_large,
  returns_early
};

// One box to shared memory, and from there as it lies to out.
template <class T, int kRank, CopyBug kBug = CopyBug::none>
__global__ void box_kernel(const __grid_constant__ TensorMap map, int x, int y, int z, int elements,
                           T* out) {
  T* const tile = gpu::dynamic_shared<T>();
  auto& full = *reinterpret_cast<Mbarrier*>(tile + elements);
  if constexpr (kBug == CopyBug::no_fence) {
    if (threadIdx.x == 0) mbarrier_init(full, 1);
    __syncthreads();
  } else {
    init(full, 1);
  }
  const int bytes = elements * int(sizeof(T));
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(full, uint32_t(kBug == CopyBug::announces_too_little ? bytes - 16
                                          : kBug == CopyBug::announces_nothing  ? 0
                                                                                : bytes));
    T* const to = tile + (kBug == CopyBug::unaligned ? 16 : kBug == CopyBug::too_large ? 256 : 0);
    if constexpr (kRank == 2)
      tma_load(to, map, full, x, y);
    else
      tma_load(to, map, full, x, y, z);
  }
  if constexpr (kBug == CopyBug::returns_early) return;
  if constexpr (kBug != CopyBug::no_wait) mbarrier_wait(full, 0);
  for (int i = int(threadIdx.x); i < elements; i += int(blockDim.x)) out[i] = tile[i];
}

template <class T>
size_t box_shared(int elements) {
  return size_t(elements) * sizeof(T) + sizeof(Mbarrier);
}

TEST(BulkCopy, PermutesChunksAndFillsWithZeros) {
  Buffer<bf16> in(21, 100, 4);  // pitch of 208 bytes
  fill_uniform(in, 1, 1, 2);
  const auto map = tensor_map<bf16, 2>({in.data(), {100, 21}, {in.ld()}}, {64, 24}, true);
  for_each_hopper([&](const simt::Stream& stream) {
    for (const auto& [x, y] : {std::pair{0, 0}, {64, 3}, {-5, -2}, {128, 0}, {0, 21}, {-64, 0}}) {
      std::vector<bf16> out(24 * 64, bf16(7.0f));
      launch(box_kernel<bf16, 2>, 32, box_shared<bf16>(24 * 64), stream, map, x, y, 0, 24 * 64,
             out.data());
      for (int r = 0; r < 24; ++r)
        for (int c = 0; c < 64; ++c) {
          const int row = y + r, col = x + c;
          const bool inside = 0 <= row && row < 21 && 0 <= col && col < 100;
          const int place = r * 64 + ((c / 8) ^ (r % 8)) * 8 + c % 8;
          EXPECT_EQ(float(out[size_t(place)]), inside ? float(in(row, col)) : 0.0f)
              << x << ", " << y << ": " << r << ", " << c;
        }
    }
  });
}

TEST(BulkCopy, TakesBoxesOfAStackOfMatrices) {
  Buffer<float> in(3 * 5, 12);  // three matrices [5, 10]
  fill_uniform(in, 2, 1, 2);
  const auto map = tensor_map<float, 3>({in.data(), {10, 5, 3}, {12, 60}}, {8, 4, 2}, false);
  for_each_hopper([&](const simt::Stream& stream) {
    for (const auto& [x, y, z] : {std::array{0, 0, 0}, {4, 2, 2}, {-1, -1, -1}, {8, 1, 1}}) {
      std::vector<float> out(2 * 4 * 8, 7);
      launch(box_kernel<float, 3>, 5, box_shared<float>(64), stream, map, x, y, z, 64, out.data());
      for (int i = 0; i < 64; ++i) {
        const int plane = z + i / 32, row = y + i / 8 % 4, col = x + i % 8;
        const bool inside = 0 <= plane && plane < 3 && 0 <= row && row < 5 && 0 <= col && col < 10;
        EXPECT_EQ(out[size_t(i)], inside ? in(plane * 5 + row, col) : 0.0f) << i;
      }
    }
  });
}

// What goes wrong: a fault, and "NaN" if that was read where the copy had not yet come.
template <CopyBug kBug>
std::string copy_fault(const simt::Stream& stream) {
  Buffer<float> in(8, 32);
  in.fill(1);
  const auto map = tensor_map<float, 2>({in.data(), {32, 8}, {32}}, {32, 8}, true);
  std::vector<float> out(256);
  const std::string fault = fault_of([&] {
    launch(box_kernel<float, 2, kBug>, 2, box_shared<float>(256), hopper(stream), map, 0, 0, 0, 256,
           out.data());
  });
  return fault + (std::isnan(out[0]) ? " NaN" : "");
}

TEST(BulkCopyFault, TooFewBytesAnnounced) {
  for_each_schedule([](const simt::Stream& stream) {
    EXPECT_TRUE(contains(copy_fault<CopyBug::announces_too_little>(stream),
                         "16 bytes more arrive than were announced"));
  });
  // Late, the phase is over before the copy has come.
  EXPECT_TRUE(contains(copy_fault<CopyBug::announces_nothing>(kReverse), "NaN"));
}

TEST(BulkCopyFault, ReadBeforeTheWait) {
  EXPECT_TRUE(contains(copy_fault<CopyBug::no_wait>(kReverse), "NaN"));
}

#if defined(__SANITIZE_THREAD__)
// It sees what the copy writes, even where the values came out right.
TEST(BulkCopyFaultDeathTest, ThreadSanitizerSeesReadsBeforeTheWait) {
  EXPECT_EXIT(
      {
        copy_fault<CopyBug::no_wait>(kForward);
        std::exit(0);
      },
      testing::ExitedWithCode(66), "data race");
}
#endif

TEST(BulkCopyFault, NamesWhatIsMissing) {
  for_each_schedule([](const simt::Stream& stream) {
    EXPECT_TRUE(contains(copy_fault<CopyBug::no_fence>(stream), "not fenced"));
    EXPECT_TRUE(contains(copy_fault<CopyBug::unaligned>(stream), "not a multiple of 128"));
    EXPECT_TRUE(contains(copy_fault<CopyBug::too_large>(stream), "leaves the block's"));
  });
  EXPECT_TRUE(contains(copy_fault<CopyBug::returns_early>(kReverse), "under way"));
}

TEST(TensorMapContract, RefusesWhatTheEngineCannotRead) {
  alignas(16) static const float data[64] = {};
  const auto make = [](const float* from, int64_t pitch, int width, bool swizzle = false) {
    return tensor_map<float, 2>({from, {8, 4}, {pitch}}, {width, 4}, swizzle);
  };
  EXPECT_NO_THROW(make(data, 8, 8));
  EXPECT_THROW(make(data + 1, 8, 8), Error);     // base
  EXPECT_THROW(make(data, 9, 8), Error);         // pitch
  EXPECT_THROW(make(data, 8, 6), Error);         // a box's row of 24 bytes
  EXPECT_THROW(make(data, 8, 257), Error);       // box too wide
  EXPECT_THROW(make(data, 8, 16, true), Error);  // swizzled rows have 128 bytes
}

// --- Products ---------------------------------------------------------------------------------

enum class Bug {
  none,
  no_wait_before_reuse,
  no_wait,
  no_register_fence,
  other_descriptor,
  other_place,
  half_a_warpgroup
};

// The place of register `index` of the calling thread's part of D.
__device__ int d_row(int index) {
  return int(threadIdx.x % 128) / 32 * 16 + int(threadIdx.x) % 32 / 4 + (index % 4 >= 2 ? 8 : 0);
}
__device__ int d_col(int index) {
  return index / 4 * 8 + int(threadIdx.x) % 4 * 2 + index % 2;
}

template <int kN>
struct ProductShared {
  bf16 a[64 * 64], b[kN * 64];
  Mbarrier full;
};

// D [64, N] = A [64, 128] B [128, N] in two rounds through the same shared memory, by one
// warpgroup. Operands in either order in memory; A also from registers.
template <int kN, bool kAAlongK, bool kBAlongK, bool kRegisters, Bug kBug = Bug::none>
__global__ void product_kernel(const __grid_constant__ TensorMap map_a,
                               const __grid_constant__ TensorMap map_b, const bf16* a, float* d) {
  using gpu::shared_address, gpu::wgmma, gpu::wgmma_descriptor;
  auto& shared = *gpu::dynamic_shared<ProductShared<kN>>();
  init(shared.full, 1);
  float sum[kN / 2];
  for (int i = 0; i < kN / 2; ++i) sum[i] = float(i % 3);
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x == 0) {
      mbarrier_arrive_expect(shared.full, (64 + kN) * 128);
      const int p = 64 * round;
      tma_load(shared.a, map_a, shared.full, kAAlongK ? p : 0, kAAlongK ? 0 : p);
      for (int j = 0; j < (kBAlongK ? 1 : kN); j += 64)
        tma_load(shared.b + j * 64, map_b, shared.full, kBAlongK ? p : j, kBAlongK ? 0 : p);
    }
    mbarrier_wait(shared.full, uint32_t(round));
    if constexpr (kBug != Bug::no_register_fence) gpu::wgmma_fence();
    for (int p = 0; p < 64; p += 16) {
      const uint64_t from_a =
          wgmma_descriptor(shared_address(shared.a + (kAAlongK ? p : p * 64)), 1024, 8192);
      const uint64_t from_b =
          wgmma_descriptor(shared_address(shared.b + (kBAlongK ? p : p * 64)), 1024, 8192);
      if constexpr (kRegisters) {
        uint32_t registers[4];
        for (int r = 0; r < 4; ++r) {
          const bf16* from = a + d_row(2 * r) * 128 + 64 * round + p + d_col(2 * r);
          registers[r] = uint32_t{from[0].bits} | uint32_t{from[1].bits} << 16;
        }
        wgmma<!kBAlongK>(sum, registers, from_b);
      } else if (kBug == Bug::other_place && threadIdx.x % 2 == 1) {
        wgmma<!kAAlongK, !kBAlongK>(sum, from_a, from_b);
      } else {
        const bool other = kBug == Bug::other_descriptor && threadIdx.x == 77;
        wgmma<!kAAlongK, !kBAlongK>(sum, other ? from_b : from_a, from_b);
      }
    }
    gpu::wgmma_commit();
    if constexpr (kBug == Bug::none) gpu::wgmma_wait<0>(sum);
    __syncthreads();  // all are done with what the next copy overwrites
  }
  if constexpr (kBug != Bug::no_wait) gpu::wgmma_wait<0>(sum);
  for (int i = 0; i < kN / 2; ++i) d[d_row(i) * kN + d_col(i)] = sum[i];
}

struct Operands {
  Buffer<bf16> a{64, 128}, b{128, 256};  // B as [k, n]; the first kN columns
  Buffer<bf16> at{128, 64}, bt{256, 128};
  Operands() {
    fill_uniform(a, 1, -1, 1);
    fill_uniform(b, 2, -1, 1);
    for (int p = 0; p < 128; ++p) {
      for (int i = 0; i < 64; ++i) at(p, i) = a(i, p);
      for (int j = 0; j < 256; ++j) bt(j, p) = b(p, j);
    }
  }
  static TensorMap map(const Buffer<bf16>& x, int rows, bool swizzle = true) {
    return tensor_map<bf16, 2>({x.data(), {x.cols(), x.rows()}, {x.ld()}}, {64, rows}, swizzle);
  }
};

// The worst error beyond what float sums may have; NaN if there is one.
double excess(const Operands& in, int n, const std::vector<float>& d) {
  double worst = 0;
  for (int i = 0; i < 64; ++i)
    for (int j = 0; j < n; ++j) {
      const int c =
          j / 8 * 4 + (i % 16 >= 8 ? 2 : 0) + j % 2;  // the register, which began as c % 3
      double want = c % 3, size = want;
      for (int p = 0; p < 128; ++p) {
        const double term = double(in.a(i, p)) * double(in.b(p, j));
        want += term;
        size += std::abs(term);
      }
      const double error = std::abs(double(d[size_t(i * n + j)]) - want) - 129 * 0x1p-24 * size;
      if (!(error <= worst)) worst = error;
      if (std::isnan(worst)) return worst;
    }
  return worst;
}

template <int kN, bool kAAlongK, bool kBAlongK, bool kRegisters = false, Bug kBug = Bug::none>
double product_excess(const simt::Stream& stream, bool swizzle = true) {
  static const Operands in;
  std::vector<float> d(64 * kN);
  launch(product_kernel<kN, kAAlongK, kBAlongK, kRegisters, kBug>,
         kBug == Bug::half_a_warpgroup ? 64 : 128, sizeof(ProductShared<kN>), hopper(stream),
         Operands::map(kAAlongK ? in.a : in.at, 64, swizzle),
         Operands::map(kBAlongK ? in.bt : in.b, kBAlongK ? kN : 64), in.a.data(), d.data());
  return excess(in, kN, d);
}

TEST(Wgmma, EveryOrderInMemory) {
  for_each_schedule([](const simt::Stream& stream) {
    EXPECT_EQ((product_excess<64, true, true>(stream)), 0);
    EXPECT_EQ((product_excess<64, false, true>(stream)), 0);
    EXPECT_EQ((product_excess<128, true, false>(stream)), 0);
    EXPECT_EQ((product_excess<128, false, false>(stream)), 0);
    EXPECT_EQ((product_excess<256, true, true>(stream)), 0);
    EXPECT_EQ((product_excess<256, false, false>(stream)), 0);
  });
}

TEST(Wgmma, FirstFactorInRegisters) {
  for_each_schedule([](const simt::Stream& stream) {
    EXPECT_EQ((product_excess<64, true, false, true>(stream)), 0);
    EXPECT_EQ((product_excess<128, true, true, true>(stream)), 0);
  });
}

// Early, the product has read its operands before the next copy overwrites them.
TEST(WgmmaFault, SharedMemoryReusedBeforeTheWait) {
  EXPECT_FALSE((product_excess<64, true, true, false, Bug::no_wait_before_reuse>(kReverse) == 0));
}

TEST(WgmmaFault, SumsReadBeforeTheWaitAreNan) {
  for_each_schedule([](const simt::Stream& stream) {
    EXPECT_TRUE(std::isnan(product_excess<64, true, true, false, Bug::no_wait>(stream)));
  });
}

TEST(WgmmaFault, AMissingSwizzleGivesWrongValues) {
  for_each_schedule([](const simt::Stream& stream) {
    EXPECT_GT((product_excess<64, true, true>(stream, /*swizzle=*/false)), 0.1);
    EXPECT_GT((product_excess<64, false, true>(stream, /*swizzle=*/false)), 0.1);
  });
}

TEST(WgmmaFault, NamesWhatIsMissing) {
  for_each_schedule([](const simt::Stream& stream) {
    const auto fault = [&]<Bug kBug>() {
      return fault_of([&] { product_excess<64, true, true, false, kBug>(stream); });
    };
    EXPECT_TRUE(contains(fault.operator()<Bug::no_register_fence>(), "wgmma_fence is missing"));
    EXPECT_TRUE(contains(fault.operator()<Bug::other_descriptor>(), "different operands"));
    EXPECT_TRUE(contains(fault.operator()<Bug::other_place>(), "different wgmma"));
    EXPECT_TRUE(contains(fault.operator()<Bug::half_a_warpgroup>(), "fewer than 128 threads"));
  });
}

// The layouts of a descriptor, as CUTLASS writes them above make_gmma_desc: chunks of 16 bytes as
// ((inner, many), (8, 2)) along m (n) and k, or ((8, many), 2), at strides of so many chunks.
struct OperandLayout {
  int code, bits;  // of the swizzle: in the descriptor; how many bits of the address it changes
  bool transposed;
  int leading, stride;  // chunks; different for each layout, so that they cannot be mixed up
};

// The chunk of [side, depth], before the swizzle.
__device__ int chunk_of(const OperandLayout& x, int side, int depth) {
  const int width = 1 << x.bits;
  if (!x.transposed) {
    const int along = x.bits == 0 ? x.leading : 1;
    return side % 8 * width + side / 8 * x.stride + depth / 8 * along;
  }
  const int across = side / 8;
  if (x.bits == 0) return across * x.stride + depth % 8 + depth / 8 * x.leading;
  return across % width + across / width * x.leading + depth % 8 * width + depth / 8 * x.stride;
}

// D [64, 64] = A [64, 16] B [16, 64], operands written by the threads themselves: what they have
// written must be fenced before the tensor cores see it.
__global__ void layout_kernel(OperandLayout layout, bool fence, const bf16* a, const bf16* b,
                              float* d) {
  constexpr int kElements = 8192;
  bf16* const shared = gpu::dynamic_shared<bf16>();
  for (int i = int(threadIdx.x); i < 2 * 64 * 16; i += 128) {
    const int side = i / 16 % 64, depth = i % 16;
    const auto at =
        uint32_t(chunk_of(layout, side, depth) * 16 + (layout.transposed ? side : depth) % 8 * 2);
    const uint32_t mask = (1u << layout.bits) - 1;
    bf16* const tile = shared + i / (64 * 16) * kElements;
    tile[(at ^ (at / 128 & mask) * 16) / 2] =
        i < 64 * 16 ? a[side * 16 + depth] : b[depth * 64 + side];
  }
  if (fence) gpu::fence_async_proxy();
  __syncthreads();
  const auto descriptor = [&](const bf16* tile) {
    return uint64_t{gpu::shared_address(tile) / 16} | uint64_t(layout.leading) << 16 |
           uint64_t(layout.stride) << 32 | uint64_t(layout.code) << 62;
  };
  float sum[32] = {};
  gpu::wgmma_fence();
  if (layout.transposed)
    gpu::wgmma<true, true>(sum, descriptor(shared), descriptor(shared + kElements));
  else
    gpu::wgmma<false, false>(sum, descriptor(shared), descriptor(shared + kElements));
  gpu::wgmma_commit();
  gpu::wgmma_wait<0>(sum);
  for (int i = 0; i < 32; ++i) d[d_row(i) * 64 + d_col(i)] = sum[i];
}

double layout_error(const OperandLayout& layout, const simt::Stream& stream, bool fence = true) {
  Buffer<bf16> a(64, 16), b(16, 64);
  fill_uniform(a, 1, -1, 1);
  fill_uniform(b, 2, -1, 1);
  std::vector<float> d(64 * 64);
  launch(layout_kernel, 128, 2 * 8192 * sizeof(bf16), hopper(stream), layout, fence, a.data(),
         b.data(), d.data());
  double worst = 0;
  for (int i = 0; i < 64; ++i)
    for (int j = 0; j < 64; ++j) {
      double want = 0;
      for (int p = 0; p < 16; ++p) want += double(a(i, p)) * double(b(p, j));
      const double error = std::abs(double(d[size_t(i * 64 + j)]) - want);
      if (!(error <= worst)) worst = error;
      if (std::isnan(worst)) return worst;
    }
  return worst;
}

TEST(Wgmma, EveryLayoutOfADescriptor) {
  const OperandLayout layouts[] = {
      {0, 0, false, 72, 8},   // chunks of one column of eight rows together, columns far apart
      {3, 1, false, 1, 16},   // rows of 32 bytes
      {2, 2, false, 1, 40},   // of 64, with a gap
      {1, 3, false, 1, 64},   // of 128
      {0, 0, true, 80, 8},    // and with neighbours along m and n
      {3, 1, true, 32, 16},   //
      {2, 2, true, 64, 32},   //
      {1, 3, true, 999, 64},  // 64 wide: one atom, leading does not count
  };
  for (const OperandLayout& layout : layouts) {
    SCOPED_TRACE(testing::Message() << layout.bits << (layout.transposed ? " transposed" : ""));
    for_each_schedule([&](const simt::Stream& stream) {
      EXPECT_TRUE(layout_error(layout, stream) <= 1e-5);
      EXPECT_TRUE(std::isnan(layout_error(layout, stream, /*fence=*/false)));
    });
  }
}

}  // namespace
}  // namespace orthofed::test
