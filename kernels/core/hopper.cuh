// Compute capability 9.0 (Hopper): where its code runs, and the instructions that organise a block
// into warpgroups (128 threads each) with different work. mbarrier.cuh, tma.cuh and wgmma.cuh have
// the rest.
//
// These instructions exist in code for sm_90a only. A kernel of other architectures must have a
// body, too, so a Hopper kernel says
//
//   if constexpr (!kHopperCode) __trap(); else { ... }
//
// and has_hopper(stream) says, on the host, whether it may be launched.
#pragma once
#include "kernels/core/gpu.cuh"

#ifdef __CUDACC__
#include "kernels/core/cuda_device.h"
#else
#include "kernels/simt/hopper.h"
#endif

namespace orthofed::gpu {
namespace {

#ifdef __CUDACC__

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
inline constexpr bool kHopperCode = true;
#else
inline constexpr bool kHopperCode = false;
#endif

inline bool has_hopper(const cuda::Stream&) {
#ifdef OF_CUDA_SM90A
  return cuda::capability() == 90;
#else
  return false;  // this build has no code for it
#endif
}

// Multiprocessors: blocks of a persistent kernel, which run at once.
inline unsigned multiprocessors(const cuda::Stream&) {
  return unsigned(cuda::multiprocessors());
}

// True in one lane of the warp, all of whose lanes call it; always the same one.
__device__ inline bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
}

// The calling warpgroup gives registers back, or waits until it can have more: kRegisters a thread
// from here on, a multiple of 8 from 24 to 256.
template <int kRegisters>
__device__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// What this thread has written to shared memory becomes visible to tensor cores and the copy
// engine (the asynchronous proxy), which do not look through the same cache path as threads do. To
// be followed by a barrier.
__device__ inline void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

#else

inline constexpr bool kHopperCode = true;

inline bool has_hopper(const simt::Stream& stream) {
  return stream.capability == 90;
}
inline unsigned multiprocessors(const simt::Stream&) {
  return 3;  // few, so that blocks of a persistent kernel have more than one piece of work
}

inline bool elect_one(const simt::Site& site = simt::Site::current()) {
  return simt::elect_one(site);
}

template <int kRegisters>
void shrink_registers() {
  static_assert(kRegisters % 8 == 0 && 24 <= kRegisters && kRegisters <= 256);
  simt::change_registers();
}
template <int kRegisters>
void grow_registers() {
  static_assert(kRegisters % 8 == 0 && 24 <= kRegisters && kRegisters <= 256);
  simt::change_registers();
}

inline uint32_t shared_address(const void* pointer) {
  return simt::shared_address(pointer);
}
inline void fence_async_proxy() {
  simt::fence_async_proxy();
}

#endif

}  // namespace
}  // namespace orthofed::gpu
