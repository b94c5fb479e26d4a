// A caching allocator: freed blocks are kept by size class and handed out again, so that a training
// step whose shapes repeat asks the heap for nothing after its first run
// (allocator_stats().heap_allocations proves it). Under AddressSanitizer cached blocks, and the
// slack behind a block, are poisoned.
#pragma once
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/device.h"

namespace orthofed {

struct AllocatorStats {
  int64_t heap_allocations = 0;  // blocks ever asked from the heap or the driver
  int64_t bytes_in_use = 0;      // handed out now
  int64_t peak_bytes_in_use = 0;
  int64_t bytes_reserved = 0;  // held from the heap, in use or cached
};

// Thrown when a device is out of memory.
struct OutOfMemory : Error {
  using Error::Error;
};

// A pool keeps its blocks for one user: a captured step (graph.h) writes to the addresses it was
// captured with whenever it is replayed, so what it released meanwhile must not go to others.
// (PyTorch keeps such pools, too: https://docs.pytorch.org/docs/stable/notes/cuda.html, "Graph
// memory management".) Under AddressSanitizer its blocks are not poisoned.
class MemoryPool {
 public:
  explicit MemoryPool(Device device) : device_(device) {}
  ~MemoryPool();  // gives the blocks back to everybody
  MemoryPool(const MemoryPool&) = delete;
  MemoryPool& operator=(const MemoryPool&) = delete;

  Device device() const { return device_; }
  int64_t in_use() const { return in_use_; }  // how many blocks are handed out

 private:
  friend void* allocate(size_t bytes, Device device);
  friend void release(void* block, size_t bytes, Device device) noexcept;
  Device device_;
  std::unordered_map<size_t, std::vector<void*>> free_;
  int64_t in_use_ = 0;
};

// While one exists, what the calling thread allocates on the pool's device comes from the pool. A
// closed pool does not grow: asking for more than it has is an Error (graph.h).
class FromPool {
 public:
  explicit FromPool(MemoryPool& pool, bool closed = false);
  ~FromPool();
  FromPool(const FromPool&) = delete;
  FromPool& operator=(const FromPool&) = delete;
};

// While one exists, allocations come from everybody's memory after all, for what outlives the step.
class LastingMemory {
 public:
  LastingMemory();
  ~LastingMemory();
  LastingMemory(const LastingMemory&) = delete;
  LastingMemory& operator=(const LastingMemory&) = delete;

 private:
  bool before_;
};

// Returns uninitialised memory of a device, aligned to 64 bytes (256 on a GPU); 0 bytes give a
// valid pointer. Thread-safe. A GPU's block may be handed out again while kernels that read it are
// still queued: whatever uses it next must be queued behind them, on the same stream. Cached blocks
// are given back before it throws OutOfMemory, which names what was needed and what there is.
void* allocate(size_t bytes, Device device);
void release(void* block, size_t bytes, Device device) noexcept;  // as given to allocate

// The block in use that contains an address; begin is null if the address is in none of ours.
struct BlockOfMemory {
  void* begin = nullptr;
  size_t bytes = 0;  // as given to allocate
};
BlockOfMemory block_of(const void* address, Device device);

AllocatorStats allocator_stats(Device device);
void reset_peak(Device device);
void release_cached(Device device);  // gives cached blocks back

}  // namespace orthofed
