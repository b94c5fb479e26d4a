// This runs CUDA kernels on the CPU. A .cu file that g++ compiles gets the CUDA language from here:
// every CUDA thread of a block is a fiber on one OS thread, barriers and warp operations are
// rendezvous of the threads they name, and whatever the hardware would leave undefined is a Fault
// with a table that says where each thread is. docs/simt.md says what is and is not emulated.
#pragma once
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <type_traits>

#include "kernels/core/check.h"
#include "kernels/core/device.h"

// The language. `static` makes a block's shared memory a plain variable that sanitizers guard; the
// section lets the emulator fill it with NaN before a block starts. (g++ 12 leaves the section out
// for statics of templates: what those hold at first is an earlier block's.)
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static __attribute__((section("of_shared")))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim{}, gridDim{};
inline constexpr int warpSize = 32;

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline uint2 make_uint2(unsigned x, unsigned y) {
  return {x, y};
}

namespace orthofed::simt {

// A kernel did what CUDA leaves undefined: a divergent or missing arrival, a mask that names a lane
// which has returned, a launch beyond a real device's limits.
struct Fault : Error {
  using Error::Error;
};

// Limits of compute capability 8.0 and 9.0.
inline constexpr unsigned kMaxThreads = 1024;
inline constexpr size_t kMaxSharedBytes = 227 * 1024;

struct Size {
  unsigned x = 1, y = 1, z = 1;
};

// Runs body() once for every thread of every block. One launch at a time in the whole process.
void run(Size grid, Size block, size_t shared_bytes, const Stream& stream,
         const std::function<void()>& body);
// Does the same, or keeps it for later where the stream records. The body owns what it needs.
void launch(Size grid, Size block, size_t shared_bytes, const Stream& stream,
            std::function<void()> body);

void* dynamic_shared();  // exactly as large as the launch said, 1,024-byte aligned

using Site = std::source_location;

// Waits until all threads of the block have arrived from the same place in the source. Returns the
// sum of their values.
int barrier(int value, const Site& site);

// A warp operation: every lane brings what it gives and where its result goes; when the last of the
// mask arrives, it completes the operation for all.
struct Lane {
  const void* in = nullptr;
  void* out = nullptr;
  int argument = 0;
};
using Complete = void (*)(Lane* lanes, uint32_t mask);  // lanes [32]
void rendezvous(const char* name, uint32_t mask, Complete complete, const Lane& mine,
                const Site& site);
void sync_warp(uint32_t mask, const Site& site);

unsigned lane_id();
[[noreturn]] void fault(const std::string& what);  // adds where the calling thread is

// Faults unless [address, address + bytes) is shared memory, aligned to its size.
void check_shared(const void* address, size_t bytes, const char* name);

// cp.async of the calling thread: a copy takes effect when it is issued or when it is waited for,
// as late as the schedule likes.
void copy_async(std::function<void()> copy);
void commit_async();
void wait_async(int pending);  // until at most `pending` groups are unfinished

#if defined(__SANITIZE_THREAD__)
#define OF_NO_TSAN __attribute__((no_sanitize("thread")))
#else
#define OF_NO_TSAN
#endif

enum class Shuffle { idx, up, down, xor_ };

// PTX ISA, shfl.sync: a lane outside its segment keeps its own value.
OF_NO_TSAN inline int shuffle_source(Shuffle mode, int lane, int operand, int width) {
  const int segment = 32 - width;  // bits that stay the lane's own
  const int first = lane & segment, last = mode == Shuffle::up ? first : first | (31 & ~segment);
  int source = lane;
  switch (mode) {
    case Shuffle::idx:
      source = first | (operand & ~segment & 31);
      break;
    case Shuffle::up:
      source = lane - operand;
      break;
    case Shuffle::down:
      source = lane + operand;
      break;
    case Shuffle::xor_:
      source = lane ^ operand;
      break;
  }
  const bool inside = mode == Shuffle::up ? source >= last : source <= last;
  return inside ? source : lane;
}

template <class T, Shuffle mode>
struct ShuffleOf {
  struct Operand {
    T value;
    int width;
  };
  OF_NO_TSAN static void complete(Lane* lanes, uint32_t mask) {
    for (int lane = 0; lane < 32; ++lane) {
      if (!(mask >> lane & 1)) continue;
      const auto* mine = static_cast<const Operand*>(lanes[lane].in);
      const int source = shuffle_source(mode, lane, lanes[lane].argument, mine->width);
      if (!(mask >> source & 1)) fault("a shuffle reads a lane that its mask does not name");
      *static_cast<T*>(lanes[lane].out) = static_cast<const Operand*>(lanes[source].in)->value;
    }
  }
};

template <Shuffle mode, class T>
T shuffle(const char* name, uint32_t mask, T value, int operand, int width, const Site& site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) fault("a width is no power of two");
  const typename ShuffleOf<T, mode>::Operand in{value, width};
  T out{};
  rendezvous(name, mask, &ShuffleOf<T, mode>::complete, {&in, &out, operand}, site);
  return out;
}

OF_NO_TSAN inline void complete_ballot(Lane* lanes, uint32_t mask) {
  uint32_t votes = 0;
  for (int lane = 0; lane < 32; ++lane)
    if ((mask >> lane & 1) && lanes[lane].argument != 0) votes |= 1u << lane;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) *static_cast<uint32_t*>(lanes[lane].out) = votes;
}
inline uint32_t ballot(const char* name, uint32_t mask, bool vote, const Site& site) {
  uint32_t votes = 0;
  rendezvous(name, mask, &complete_ballot, {nullptr, &votes, vote}, site);
  return votes;
}

}  // namespace orthofed::simt

// Barriers and warp operations. The defaulted argument is the call's own place in the source.
#define OF_SITE const orthofed::simt::Site& site = orthofed::simt::Site::current()

inline void __syncthreads(OF_SITE) {
  orthofed::simt::barrier(0, site);
}
inline int __syncthreads_count(int predicate, OF_SITE) {
  return orthofed::simt::barrier(predicate != 0, site);
}
inline int __syncthreads_or(int predicate, OF_SITE) {
  return orthofed::simt::barrier(predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, OF_SITE) {
  return orthofed::simt::barrier(predicate == 0, site) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, OF_SITE) {
  orthofed::simt::sync_warp(mask, site);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, OF_SITE) {
  using enum orthofed::simt::Shuffle;
  return orthofed::simt::shuffle<idx>("__shfl_sync", mask, value, lane, width, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, OF_SITE) {
  using enum orthofed::simt::Shuffle;
  return orthofed::simt::shuffle<up>("__shfl_up_sync", mask, value, int(delta), width, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, OF_SITE) {
  using enum orthofed::simt::Shuffle;
  return orthofed::simt::shuffle<down>("__shfl_down_sync", mask, value, int(delta), width, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, OF_SITE) {
  using enum orthofed::simt::Shuffle;
  return orthofed::simt::shuffle<xor_>("__shfl_xor_sync", mask, value, lane_mask, width, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, OF_SITE) {
  return orthofed::simt::ballot("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, OF_SITE) {
  return orthofed::simt::ballot("__any_sync", mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, OF_SITE) {
  return orthofed::simt::ballot("__all_sync", mask, predicate != 0, site) == mask;
}
#undef OF_SITE

// Atomics. Relaxed, so that ThreadSanitizer sees no race in them and no order from them.
template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(address, &old, T(old + value), true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  return old;
}
inline float atomicAdd(float* address, float value) {
  uint32_t bits = __atomic_load_n(reinterpret_cast<uint32_t*>(address), __ATOMIC_RELAXED);
  float old = 0;
  do {
    old = std::bit_cast<float>(bits);
  } while (!__atomic_compare_exchange_n(reinterpret_cast<uint32_t*>(address), &bits,
                                        std::bit_cast<uint32_t>(old + value), true,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}
template <class T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  T old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(address, &old, value, true, __ATOMIC_RELAXED,
                                                     __ATOMIC_RELAXED)) {
  }
  return old;
}
template <class T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

[[noreturn]] inline void __trap() {
  orthofed::simt::fault("__trap()");
}
