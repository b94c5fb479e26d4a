// A caching allocator: freed blocks are kept by size class and handed out again, so that a training
// step whose shapes repeat asks the heap for nothing after its first run (stats().heap_allocations
// proves it). Under AddressSanitizer cached blocks, and the slack behind a block, are poisoned.
#pragma once
#include <cstddef>
#include <cstdint>

namespace orthofed {

struct AllocatorStats {
  int64_t heap_allocations = 0;  // blocks ever asked from the heap
  int64_t bytes_in_use = 0;      // handed out now
  int64_t peak_bytes_in_use = 0;
  int64_t bytes_reserved = 0;  // held from the heap, in use or cached
};

// Memory aligned to 64 bytes, uninitialised; 0 bytes give a valid pointer. Thread-safe. Throws
// Error naming the size when the heap has no more.
void* allocate(size_t bytes);
void release(void* block, size_t bytes) noexcept;  // `bytes` as given to allocate

AllocatorStats allocator_stats();
void reset_peak();
void release_cached();  // give cached blocks back to the heap

}  // namespace orthofed
