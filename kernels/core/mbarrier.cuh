// mbarrier: a barrier in shared memory that threads arrive at without waiting, and that counts the
// bytes of asynchronous copies as well (PTX ISA, "Parallel Synchronization: mbarrier").
//
// It goes from phase to phase; a phase ends when `arrivals` threads have arrived and all bytes that
// were announced are there. Phases alternate in parity, 0 first. mbarrier_wait(b, parity) waits for
// the end of the phase of that parity, so that on a fresh barrier a wait for parity 1 returns at
// once: what it waits for lies before the beginning.
//
// One thread initialises: mbarrier_init for each, mbarrier_init_fence, then a barrier of the block.
// What a thread wrote before it arrived is visible to who has waited for the end of that phase.
#pragma once
#include "kernels/core/hopper.cuh"

namespace orthofed::gpu {
namespace {

struct Mbarrier {
  uint64_t opaque;
};

#ifdef __CUDACC__

__device__ inline void mbarrier_init(Mbarrier& barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)),
               "r"(arrivals)
               : "memory");
}
__device__ inline void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Its memory may be used for something else.
__device__ inline void mbarrier_inval(Mbarrier& barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(&barrier)) : "memory");
}

__device__ inline void mbarrier_arrive(Mbarrier& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier))
               : "memory");
}
// Arrives, and announces bytes that copies will deliver in this phase.
__device__ inline void mbarrier_arrive_expect(Mbarrier& barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)),
      "r"(bytes)
      : "memory");
}

__device__ inline void mbarrier_wait(Mbarrier& barrier, uint32_t parity) {
  uint32_t done = 0;
  while (done == 0)  // an attempt suspends the thread for a while
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(done)
        : "r"(shared_address(&barrier)), "r"(parity)
        : "memory");
}

#else

inline void mbarrier_init(Mbarrier& barrier, uint32_t arrivals) {
  simt::mbarrier_init(&barrier.opaque, arrivals);
}
inline void mbarrier_init_fence() {
  simt::mbarrier_fence();
}
inline void mbarrier_inval(Mbarrier& barrier) {
  simt::mbarrier_inval(&barrier.opaque);
}
inline void mbarrier_arrive(Mbarrier& barrier) {
  simt::mbarrier_arrive(&barrier.opaque, 0);
}
inline void mbarrier_arrive_expect(Mbarrier& barrier, uint32_t bytes) {
  simt::mbarrier_arrive(&barrier.opaque, bytes);
}
inline void mbarrier_wait(Mbarrier& barrier, uint32_t parity,
                          const simt::Site& site = simt::Site::current()) {
  simt::mbarrier_wait(&barrier.opaque, parity, site);
}

#endif

}  // namespace
}  // namespace orthofed::gpu
