// Reductions within a warp and a block, and 16-byte packs. The order of every sum is fixed, so a
// result is the same at every run, on a GPU and in the emulator alike.
#pragma once
#include "kernels/core/gpu.cuh"

namespace orthofed::gpu {
namespace {

inline constexpr unsigned kFullWarp = 0xffffffffu;

// Butterfly: every lane ends with the same sum, added in the same order. 5 additions deep.
template <class T>
__device__ T warp_sum(T value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kFullWarp, value, step);
  return value;
}

// NaN wins, as it would in a loop of `a < b || isnan(b) ? b : a`.
__device__ inline float max_or_nan(float a, float b) {
  return !(a >= b) ? (a != a ? a : b) : a;
}

__device__ inline float warp_max(float value) {
  for (int step = 16; step > 0; step /= 2)
    value = max_or_nan(value, __shfl_xor_sync(kFullWarp, value, step));
  return value;
}

// Sums over all threads of a one-dimensional block of kThreads; every thread gets the result. Two
// barriers; may be called again at once. kThreads is a multiple of 32, at most 1,024.
template <int kThreads, class T>
__device__ T block_sum(T value) {
  static_assert(kThreads % 32 == 0 && kThreads <= 1024);
  constexpr int kWarps = kThreads / 32;
  if constexpr (kWarps == 1) return warp_sum(value);
  __shared__ T partial[kWarps];
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  value = warp_sum(value);
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  value = warp_sum(lane < kWarps ? partial[lane] : T(0));
  __syncthreads();  // before the next call writes partial
  return value;
}

// N elements moved by one load or store instruction, at most 16 bytes.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  static_assert(sizeof(T) * N <= 16);
  T values[N];
  __device__ T& operator[](int i) { return values[i]; }
  __device__ const T& operator[](int i) const { return values[i]; }
};

template <class T>
inline constexpr int kFullPack = 16 / int(sizeof(T));  // elements that one instruction moves

template <int N, class T>
__device__ Pack<T, N> load_pack(const T* from) {
#ifndef __CUDACC__
  // Emulated: GCC 14 would merge this load with those of the elements in another branch (rows.cuh:
  // load_part) and take the address for aligned in both.
  asm("" : "+r"(from));
#endif
  return *reinterpret_cast<const Pack<T, N>*>(from);
}
template <int N, class T>
__device__ void store_pack(T* to, const Pack<T, N>& pack) {
#ifdef __CUDACC__
  // nvcc takes a pack apart and, behind any but the simplest address, stores its elements one by
  // one. It knows where a pointer leads, so that no branch is left of this.
  if (sizeof pack > 4 && __isGlobal(to)) {
    const uint64_t address = __cvta_generic_to_global(to);
    if constexpr (sizeof pack == 16) {
      const auto [x, y, z, w] = std::bit_cast<uint4>(pack);
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(x), "r"(y),
                   "r"(z), "r"(w)
                   : "memory");
      return;
    } else if constexpr (sizeof pack == 8) {
      const auto [x, y] = std::bit_cast<uint2>(pack);
      asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(address), "r"(x), "r"(y) : "memory");
      return;
    }
  }
#endif
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// May every row of a matrix be read in packs of N? (Base and pitch must allow it; host side.)
template <int N, class T>
bool packable(const T* data, int64_t ld) {
  return reinterpret_cast<uintptr_t>(data) % (sizeof(T) * N) == 0 && ld % N == 0;
}

}  // namespace
}  // namespace orthofed::gpu
