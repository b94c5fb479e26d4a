// A caching allocator: freed blocks are kept by size class and handed out again, so that a training
// step whose shapes repeat asks the heap for nothing after its first run (stats().heap_allocations
// proves it). Under AddressSanitizer cached blocks, and the slack behind a block, are poisoned.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/core/check.h"
#include "kernels/core/device.h"

namespace orthofed {

struct AllocatorStats {
  int64_t heap_allocations = 0;  // blocks ever asked from the heap or the driver
  int64_t bytes_in_use = 0;      // handed out now
  int64_t peak_bytes_in_use = 0;
  int64_t bytes_reserved = 0;  // held from the heap, in use or cached
};

// A device's memory does not do for what is asked of it.
struct OutOfMemory : Error {
  using Error::Error;
};

// Memory of a device, aligned to 64 bytes (256 on a GPU), uninitialised; 0 bytes give a valid
// pointer. Thread-safe. A GPU's block may be handed out again while kernels that read it are still
// queued: whatever uses it next must be queued behind them, on the same stream. Cached blocks are
// given back before it throws OutOfMemory, which names what was needed and what there is.
void* allocate(size_t bytes, Device device);
void release(void* block, size_t bytes, Device device) noexcept;  // as given to allocate

// The block in use that an address lies in; begin is null if it is none of ours.
struct BlockOfMemory {
  void* begin = nullptr;
  size_t bytes = 0;  // as given to allocate
};
BlockOfMemory block_of(const void* address, Device device);

AllocatorStats allocator_stats(Device device);
void reset_peak(Device device);
void release_cached(Device device);  // give cached blocks back

}  // namespace orthofed
