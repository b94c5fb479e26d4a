// The emulator itself: what it computes, and the faults it must find. A checker that finds nothing
// is worth nothing, so most kernels here are wrong on purpose.
#include "kernels/simt/simt.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "kernels/core/mma.cuh"
#include "kernels/core/warp.cuh"
#include "tests/support/random.h"
#include "tests/support/simt.h"

namespace orthofed::test {
namespace {

using gpu::launch;
using gpu::LaunchShape;

// --- What it computes -------------------------------------------------------------------------

__global__ void index_kernel(int* out) {
  const int block = int((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
  const int thread = int(threadIdx.y * blockDim.x + threadIdx.x);
  out[block * int(blockDim.x * blockDim.y) + thread] += block * 1000 + thread;
}

TEST(Simt, RunsEveryThreadOfEveryBlockOnce) {
  for_each_schedule([](const simt::Stream& stream) {
    std::vector<int> out(3 * 2 * 2 * 35);
    launch(index_kernel, {.grid_x = 3, .grid_y = 2, .grid_z = 2, .threads_x = 7, .threads_y = 5},
           stream, out.data());
    for (int b = 0; b < 12; ++b)
      for (int t = 0; t < 35; ++t) EXPECT_EQ(out[size_t(b * 35 + t)], b * 1000 + t);
  });
}

TEST(Simt, AnEmptyGridIsNoLaunch) {
  launch(index_kernel, {.grid_x = 0}, kForward, nullptr);
}

__global__ void reverse_kernel(const int* in, int* out) {
  __shared__ int tile[64];
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

TEST(Simt, BarrierOrdersSharedMemory) {
  std::vector<int> in(64), out(64);
  std::iota(in.begin(), in.end(), 100);
  for_each_schedule([&](const simt::Stream& stream) {
    launch(reverse_kernel, {.threads_x = 64}, stream, in.data(), out.data());
    for (int i = 0; i < 64; ++i) EXPECT_EQ(out[size_t(i)], 163 - i);
  });
}

__global__ void shuffle_kernel(int* out) {
  const int lane = int(threadIdx.x);
  out[lane] = __shfl_sync(0xffffffffu, lane, 3, 8);
  out[32 + lane] = __shfl_up_sync(0xffffffffu, lane, 3, 16);
  out[64 + lane] = __shfl_down_sync(0xffffffffu, lane, 5, 8);
  out[96 + lane] = __shfl_xor_sync(0xffffffffu, lane, 9, 8);
  out[128 + lane] = int(__ballot_sync(0xffffffffu, lane % 3 == 0));
  if (lane < 16) out[160 + lane] = __shfl_xor_sync(0xffffu, lane, 1);
}

// Expected values from the definition of shfl.sync in the PTX ISA.
TEST(Simt, ShufflesStayInTheirSegment) {
  for_each_schedule([](const simt::Stream& stream) {
    std::vector<int> out(176);
    launch(shuffle_kernel, {.threads_x = 32}, stream, out.data());
    uint32_t votes = 0;
    for (int lane = 0; lane < 32; lane += 3) votes |= 1u << lane;
    for (int lane = 0; lane < 32; ++lane) {
      const int first8 = lane / 8 * 8, first16 = lane / 16 * 16;
      EXPECT_EQ(out[size_t(lane)], first8 + 3);
      EXPECT_EQ(out[size_t(32 + lane)], lane - 3 >= first16 ? lane - 3 : lane);
      EXPECT_EQ(out[size_t(64 + lane)], lane + 5 <= first8 + 7 ? lane + 5 : lane);
      // An earlier segment may be read, a later one not.
      EXPECT_EQ(out[size_t(96 + lane)], (lane ^ 9) <= first8 + 7 ? lane ^ 9 : lane);
      EXPECT_EQ(uint32_t(out[size_t(128 + lane)]), votes);
      if (lane < 16) {
        EXPECT_EQ(out[size_t(160 + lane)], lane ^ 1);
      }
    }
  });
}

template <int kThreads>
__global__ void sum_kernel(const float* in, float* out) {
  out[threadIdx.x] = gpu::block_sum<kThreads>(in[threadIdx.x]);
  out[threadIdx.x] += gpu::block_sum<kThreads>(1.0f);  // at once again
}

TEST(Simt, BlockSumReachesEveryThread) {
  for_each_schedule([](const simt::Stream& stream) {
    std::vector<float> in(256), out(256);
    std::iota(in.begin(), in.end(), 0.0f);
    launch(sum_kernel<256>, {.threads_x = 256}, stream, in.data(), out.data());
    for (float x : out) EXPECT_EQ(x, 255 * 128 + 256);
    launch(sum_kernel<32>, {.threads_x = 32}, stream, in.data(), out.data());
    for (int i = 0; i < 32; ++i) EXPECT_EQ(out[size_t(i)], 31 * 16 + 32);
  });
}

__global__ void atomic_kernel(float* sum, int* count, unsigned* largest, int* winners, int* last) {
  atomicAdd(sum, 0.5f);
  atomicAdd(count, 1);
  atomicMax(largest, threadIdx.x);
  if (atomicCAS(&winners[0], 0, 1) == 0) atomicAdd(&winners[1], 1);
  atomicExch(last, int(threadIdx.x));
}

TEST(Simt, Atomics) {
  float sum = 0;
  int count = 0;
  unsigned largest = 0;
  int winners[2] = {}, last = -1;
  launch(atomic_kernel, {.grid_x = 2, .threads_x = 100}, kRandom, &sum, &count, &largest,
         static_cast<int*>(winners), &last);
  EXPECT_EQ(winners[0], 1);
  EXPECT_EQ(winners[1], 1);  // one thread alone found the 0
  EXPECT_TRUE(0 <= last && last < 100);
  EXPECT_EQ(sum, 100);
  EXPECT_EQ(count, 200);
  EXPECT_EQ(largest, 99u);
}

__global__ void vote_kernel(int* out) {
  const int i = int(threadIdx.x);
  const int votes[4] = {__syncthreads_count(i % 5 == 0), __syncthreads_or(i == 77),
                        __syncthreads_and(i != 77), __syncthreads_and(1)};
  if (i < 4) out[i] = votes[i];
  const int in_warp[4] = {__any_sync(0xffffffffu, i == 40), __all_sync(0xffffffffu, i != 40),
                          __any_sync(0xffffffffu, 0), __all_sync(0xffffffffu, 1)};
  if (i == 32)  // in the second warp
    for (int k = 0; k < 4; ++k) out[4 + k] = in_warp[k];
}

TEST(Simt, BarriersThatCount) {
  std::vector<int> out(8);
  launch(vote_kernel, {.threads_x = 96}, kRandom, out.data());
  EXPECT_EQ(out[0], 20);
  EXPECT_EQ(out[1], 1);
  EXPECT_EQ(out[2], 0);
  EXPECT_EQ(out[3], 1);
  EXPECT_EQ(out[4], 1);
  EXPECT_EQ(out[5], 0);
  EXPECT_EQ(out[6], 0);
  EXPECT_EQ(out[7], 1);
}

// One warp multiplies A [16, 16] by B [16, 8], both taken from shared memory by ldmatrix. b_rows:
// is B stored [k, n] (and transposed on the way) or [n, k]?
template <bool kRows>
__global__ void mma_kernel(const bf16* a, const bf16* b, float* d) {
  __shared__ __align__(16) bf16 tile_a[16][16];
  __shared__ __align__(16) bf16 tile_b[kRows ? 16 : 8][kRows ? 8 : 16];
  const int lane = int(threadIdx.x), g = lane / 4, t = lane % 4;
  for (int i = lane; i < 256; i += 32) tile_a[i / 16][i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) (&tile_b[0][0])[i] = b[i];
  __syncwarp();
  uint32_t fragment_a[4], fragment_b[2];
  gpu::ldmatrix_x4(fragment_a, &tile_a[lane % 16][lane / 16 * 8]);
  if constexpr (kRows)
    gpu::ldmatrix_x2_trans(fragment_b, &tile_b[lane % 16][0]);
  else
    gpu::ldmatrix_x2(fragment_b, &tile_b[lane % 8][lane / 8 % 2 * 8]);
  float sum[4] = {1, 2, 3, 4};
  gpu::mma_16x8x16(sum, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

TEST(Simt, TensorCoreProduct) {
  Buffer<bf16> a(16, 16), b(16, 8), bt(8, 16);
  fill_uniform(a, 1, -1, 1);
  fill_uniform(b, 2, -1, 1);
  for (int k = 0; k < 16; ++k)
    for (int n = 0; n < 8; ++n) bt(n, k) = b(k, n);
  for_each_schedule([&](const simt::Stream& stream) {
    for (const bool rows : {true, false}) {
      std::vector<float> d(128);
      if (rows)
        launch(mma_kernel<true>, {.threads_x = 32}, stream, a.data(), b.data(), d.data());
      else
        launch(mma_kernel<false>, {.threads_x = 32}, stream, a.data(), bt.data(), d.data());
      for (int i = 0; i < 16; ++i)
        for (int n = 0; n < 8; ++n) {
          double want = 1 + n % 2 + i / 8 * 2;
          for (int k = 0; k < 16; ++k) want += double(a(i, k)) * double(b(k, n));
          EXPECT_TRUE(std::abs(double(d[size_t(i * 8 + n)]) - want) <= 1e-5) << i << ", " << n;
        }
    }
  });
}

__global__ void copy_kernel(const float* in, float* out, int bytes) {
  __shared__ __align__(16) float tile[2][32 * 4];
  const int first = int(threadIdx.x) * 4;
  for (int part = 0; part < 2; ++part) {
    gpu::cp_async_16(&tile[part][first], in + part * 128 + first, bytes);
    gpu::cp_async_commit();
  }
  gpu::cp_async_wait<1>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) out[first + i] = tile[0][127 - first - i];
  gpu::cp_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) out[128 + first + i] = tile[1][127 - first - i];
}

TEST(Simt, AsynchronousCopiesArriveByTheirWait) {
  Buffer<float> in(1, 256);
  for (int i = 0; i < 256; ++i) in(0, i) = float(i);
  for_each_schedule([&](const simt::Stream& stream) {
    for (const int bytes : {16, 8, 0}) {
      std::vector<float> out(256);
      launch(copy_kernel, {.threads_x = 32}, stream, in.data(), out.data(), bytes);
      for (int i = 0; i < 256; ++i) {
        const int source = i / 128 * 128 + 127 - i % 128;
        EXPECT_EQ(out[size_t(i)], source % 4 < bytes / 4 ? float(source) : 0.0f);
      }
    }
  });
}

// --- Faults it must find ----------------------------------------------------------------------

__global__ void missing_barrier_kernel(const int* in, int* out) {
  __shared__ int tile[64];
  tile[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = tile[63 - threadIdx.x];  // a barrier is missing above
}

int wrong_after_missing_barrier(const simt::Stream& stream) {
  std::vector<int> in(64), out(64);
  std::iota(in.begin(), in.end(), 100);
  launch(missing_barrier_kernel, {.threads_x = 64}, stream, in.data(), out.data());
  int wrong = 0;
  for (int i = 0; i < 64; ++i) wrong += out[size_t(i)] != 163 - i;
  return wrong;
}

__global__ void write_after_read_kernel(int* out) {
  __shared__ int value;
  int sum = 0;
  for (int round = 0; round < 4; ++round) {
    if (threadIdx.x == 0) value = round;
    __syncthreads();
    sum += value;  // a barrier is missing below: thread 0 may write the next value
  }
  out[threadIdx.x] = sum;
}

#if !defined(__SANITIZE_THREAD__)  // which would report these races, as it should
// Every schedule runs threads one after another, so half of them find nothing yet.
TEST(SimtFault, MissingBarrierGivesWrongResults) {
  EXPECT_GT(wrong_after_missing_barrier(kForward), 0);
  EXPECT_GT(wrong_after_missing_barrier(kReverse), 0);
  EXPECT_GT(wrong_after_missing_barrier(kRandom), 0);
}

TEST(SimtFault, WriteAfterReadShowsInOneOfTheSchedules) {
  int wrong = 0;
  for (const simt::Stream& stream : {kForward, kReverse, kRandom}) {
    std::vector<int> out(64);
    launch(write_after_read_kernel, {.threads_x = 64}, stream, out.data());
    for (int x : out) wrong += x != 6;
  }
  EXPECT_GT(wrong, 0);
}
#endif

__global__ void divergent_barrier_kernel() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

TEST(SimtFault, DivergentBarrierIsNamedWithItsThreads) {
  for_each_schedule([](const simt::Stream& stream) {
    const std::string fault =
        fault_of([&] { launch(divergent_barrier_kernel, {.threads_x = 64}, stream); });
    EXPECT_TRUE(contains(fault, "different barriers"));
    EXPECT_TRUE(contains(fault, "simt_test.cc"));
  });
}

__global__ void early_return_kernel() {
  if (threadIdx.x == 5) return;
  __syncthreads();
}

TEST(SimtFault, EarlyReturnBeforeABarrier) {
  for_each_schedule([](const simt::Stream& stream) {
    EXPECT_TRUE(contains(fault_of([&] { launch(early_return_kernel, {.threads_x = 64}, stream); }),
                         "thread 5: has returned"));
  });
}

__global__ void missing_lane_kernel(int* out) {
  if (threadIdx.x % 2 == 0) out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 2);
}

TEST(SimtFault, AMaskThatNamesAbsentLanes) {
  for_each_schedule([](const simt::Stream& stream) {
    std::vector<int> out(32);
    EXPECT_THROW(launch(missing_lane_kernel, {.threads_x = 32}, stream, out.data()), Fault);
  });
}

__global__ void different_operations_kernel(int* out) {
  if (threadIdx.x < 16)
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 2);
  else
    out[threadIdx.x] = int(__ballot_sync(0xffffffffu, 1));
}

TEST(SimtFault, LanesOfOneMaskInDifferentOperations) {
  for_each_schedule([](const simt::Stream& stream) {
    std::vector<int> out(32);
    EXPECT_TRUE(contains(fault_of([&] {
                           launch(different_operations_kernel, {.threads_x = 32}, stream,
                                  out.data());
                         }),
                         "different operations"));
  });
}

__global__ void foreign_mask_kernel(int* out) {
  out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1, 2);
}

TEST(SimtFault, AMaskWithoutTheCaller) {
  std::vector<int> out(32);
  EXPECT_TRUE(contains(
      fault_of([&] { launch(foreign_mask_kernel, {.threads_x = 32}, kReverse, out.data()); }),
      "does not name its own lane"));
}

__global__ void uninitialised_kernel(float* out) {
  __shared__ float tile[32];
  float* dynamic = gpu::dynamic_shared<float>();
  out[0] = tile[7];
  out[1] = dynamic[3];
}

TEST(SimtFault, SharedMemoryThatNobodyWroteIsNan) {
  std::vector<float> out(2);
  launch(uninitialised_kernel, {.shared_bytes = 64}, kForward, out.data());
  EXPECT_TRUE(std::isnan(out[0]));
  EXPECT_TRUE(std::isnan(out[1]));
}

__global__ void missing_wait_kernel(const float* in, float* out) {
  __shared__ __align__(16) float tile[128];
  gpu::cp_async_16(&tile[threadIdx.x * 4], in + threadIdx.x * 4);
  gpu::cp_async_commit();
  gpu::cp_async_wait<1>();  // should be 0
  out[threadIdx.x] = tile[threadIdx.x * 4];
}

TEST(SimtFault, AWaitForTheWrongGroupReadsNan) {
  Buffer<float> in(1, 128);
  in.fill(1);
  std::vector<float> out(32);
  launch(missing_wait_kernel, {.threads_x = 32}, kReverse, in.data(), out.data());
  for (float x : out) EXPECT_TRUE(std::isnan(x));
}

__global__ void misplaced_copy_kernel(const float* in, float* out, int shift) {
  __shared__ __align__(16) float tile[132];
  gpu::cp_async_16(shift == 0 ? out : &tile[shift], in);
}

TEST(SimtFault, CopiesToAWrongPlace) {
  Buffer<float> in(1, 4), out(1, 4);
  in.fill(1);
  EXPECT_TRUE(contains(
      fault_of([&] { launch(misplaced_copy_kernel, {}, kForward, in.data(), out.data(), 0); }),
      "not in shared memory"));
  EXPECT_TRUE(contains(
      fault_of([&] { launch(misplaced_copy_kernel, {}, kForward, in.data(), out.data(), 1); }),
      "not a multiple of 16"));
}

TEST(SimtFault, LaunchesBeyondADevice) {
  std::vector<float> out(2);
  EXPECT_THROW(launch(uninitialised_kernel, {.threads_x = 1025}, kForward, out.data()), Fault);
  EXPECT_THROW(launch(uninitialised_kernel, {.shared_bytes = 228 * 1024}, kForward, out.data()),
               Fault);
  EXPECT_THROW(launch(uninitialised_kernel, {.grid_y = 65536}, kForward, out.data()), Fault);
  EXPECT_THROW(launch(uninitialised_kernel, {}, kForward, out.data()), Fault);  // no dynamic memory
}

// A launch after a fault finds the emulator as it was.
TEST(SimtFault, LeavesTheEmulatorUsable) {
  EXPECT_THROW(launch(early_return_kernel, {.threads_x = 64}, kForward), Fault);
  std::vector<int> in(64, 1), out(64);
  launch(reverse_kernel, {.threads_x = 64}, kForward, in.data(), out.data());
  EXPECT_EQ(out, in);
}

#if defined(__SANITIZE_ADDRESS__)
__global__ void global_overrun_kernel(float* out) {
  out[threadIdx.x + 1] = 1;
}
__global__ void shared_overrun_kernel(float* out, int reach) {
  __shared__ float tile[32];
  float* p = tile;
  p[threadIdx.x + reach] = 1;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}
__global__ void dynamic_overrun_kernel(float* out) {
  float* tile = gpu::dynamic_shared<float>();
  tile[threadIdx.x] = 1;
  out[threadIdx.x] = tile[threadIdx.x];
}

// UBSan looks at the size of the object before ASan looks at the red zone behind it.
TEST(SimtFaultDeathTest, AddressSanitizerSeesOverruns) {
  std::vector<float> out(32);
  EXPECT_DEATH(launch(global_overrun_kernel, {.threads_x = 32}, kForward, out.data()),
               "heap-buffer-overflow");
  EXPECT_DEATH(launch(shared_overrun_kernel, {.threads_x = 32}, kForward, out.data(), 1),
               "global-buffer-overflow|insufficient space");
  EXPECT_DEATH(launch(dynamic_overrun_kernel, {.threads_x = 32, .shared_bytes = 31 * 4}, kForward,
                      out.data()),
               "heap-buffer-overflow");
}
#endif

#if defined(__SANITIZE_THREAD__)
TEST(SimtFaultDeathTest, ThreadSanitizerSeesRacesInOneOrder) {
  // The reports end a process with status 66 when it exits.
  EXPECT_EXIT(
      {
        wrong_after_missing_barrier(kForward);
        std::exit(0);
      },
      testing::ExitedWithCode(66), "data race");
  EXPECT_EXIT(
      {
        std::vector<int> out(64);
        launch(write_after_read_kernel, {.threads_x = 64}, kForward, out.data());
        std::exit(0);
      },
      testing::ExitedWithCode(66), "data race");
}
#endif

}  // namespace
}  // namespace orthofed::test
