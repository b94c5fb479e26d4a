// The emulator has these parts of compute capability 9.0: mbarriers, bulk tensor copies and
// warpgroup products. kernels/core/{mbarrier,tma,wgmma,hopper}.cuh give them to kernels. They are
// asynchronous: the schedule decides whether each takes effect at its earliest or its latest legal
// moment (the latest is when no thread can go on without it). Copies and products are emulated on
// dynamic shared memory only.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/simt/simt.h"

namespace orthofed::simt {

// Returns the address in the window of shared memory, which descriptors use; as on a GPU, the
// system's first 1,024 bytes come before the launch's own.
inline constexpr uint32_t kSharedWindow = 1024;
uint32_t shared_address(const void* pointer);  // of dynamic shared memory

// A phase ends when all expected arrivals have come and all announced bytes are there.
void mbarrier_init(uint64_t* mbarrier, uint32_t arrivals);
void mbarrier_inval(uint64_t* mbarrier);
void mbarrier_fence();  // makes what this thread has initialised visible to copies
void mbarrier_arrive(uint64_t* mbarrier, uint32_t bytes);
void mbarrier_wait(uint64_t* mbarrier, uint32_t parity, const Site& site);

// In rows of 32, 64 or 128 bytes, chunks of 16 are permuted by the row's number: the bits of the
// address that number the chunk within its row change with the lowest bits of those that number the
// line of 128 bytes.
enum class Swizzle : uint8_t { none, bytes_32, bytes_64, bytes_128 };
constexpr uint32_t swizzled(uint32_t address, Swizzle swizzle) {
  const uint32_t bits = (1u << int(swizzle)) - 1;
  return address ^ ((address >> 7 & bits) << 4);
}

// The logical fields of a CUtensorMap, dimension 0 innermost.
struct TensorMap {
  const std::byte* data;
  int rank;  // 2 or 3
  int element_bytes;
  int64_t size[3];   // elements; 1 beyond the rank
  int64_t pitch[3];  // bytes from one index to the next
  int box[3];        // elements that one copy moves
  Swizzle swizzle;
};
void bulk_copy(void* shared, const TensorMap& map, const int (&at)[3], uint64_t* mbarrier);

void fence_async_proxy();

bool elect_one(const Site& site);
void change_registers();  // setmaxnreg: nothing, but only where Hopper is emulated

// One thread's part in D [64, n] += A [64, 16] B [16, n], or of e4m3, twice as deep.
struct Wgmma {
  float* d;                   // [n / 2]
  const uint32_t* registers;  // [4], A; or null, and its descriptor counts
  uint64_t a, b;              // descriptors
  int n;
  bool transpose_a, transpose_b;
  bool e4m3 = false;  // along k, from descriptors
  bool add = true;    // else D = A B
};
void wgmma(const Wgmma& product, const Site& site);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int pending);

}  // namespace orthofed::simt
