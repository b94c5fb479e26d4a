#include "engine/tensor/allocator.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "kernels/core/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace orthofed {
namespace {

constexpr size_t kAlignment = 64;

// Four classes an octave: at most 25 % slack, and few enough classes that blocks are reused.
size_t size_class(size_t bytes) {
  bytes = std::max(bytes, kAlignment);
  const size_t step = std::max(std::bit_floor(bytes) / 4, kAlignment);
  return (bytes + step - 1) / step * step;
}

struct Cache {
  std::mutex mutex;
  std::unordered_map<size_t, std::vector<void*>> free;
  AllocatorStats stats;
};

// Never destroyed: tensors with static lifetime may be freed after any static here.
Cache& cache() {
  static Cache* instance = new Cache;
  return *instance;
}

}  // namespace

void* allocate(size_t bytes) {
  const size_t size = size_class(bytes);
  Cache& c = cache();
  std::lock_guard lock(c.mutex);
  void* block = nullptr;
  auto& list = c.free[size];
  if (!list.empty()) {
    block = list.back();
    list.pop_back();
  } else {
    block = std::aligned_alloc(kAlignment, size);
    if (block == nullptr)
      throw Error(
          fmt::format("out of memory: {} MiB more were needed, {} MiB are in use; a smaller "
                      "train.batch_size needs less",
                      size >> 20, c.stats.bytes_in_use >> 20));
    ++c.stats.heap_allocations;
    c.stats.bytes_reserved += int64_t(size);
  }
  c.stats.bytes_in_use += int64_t(size);
  c.stats.peak_bytes_in_use = std::max(c.stats.peak_bytes_in_use, c.stats.bytes_in_use);
  ASAN_UNPOISON_MEMORY_REGION(block, bytes);
  ASAN_POISON_MEMORY_REGION(static_cast<char*>(block) + bytes, size - bytes);
  return block;
}

void release(void* block, size_t bytes) noexcept {
  if (block == nullptr) return;
  const size_t size = size_class(bytes);
  ASAN_POISON_MEMORY_REGION(block, size);
  Cache& c = cache();
  std::lock_guard lock(c.mutex);
  c.free[size].push_back(block);
  c.stats.bytes_in_use -= int64_t(size);
}

AllocatorStats allocator_stats() {
  Cache& c = cache();
  std::lock_guard lock(c.mutex);
  return c.stats;
}

void reset_peak() {
  Cache& c = cache();
  std::lock_guard lock(c.mutex);
  c.stats.peak_bytes_in_use = c.stats.bytes_in_use;
}

void release_cached() {
  Cache& c = cache();
  std::lock_guard lock(c.mutex);
  for (auto& [size, blocks] : c.free) {
    for (void* block : blocks) {
      ASAN_UNPOISON_MEMORY_REGION(block, size);
      std::free(block);
      c.stats.bytes_reserved -= int64_t(size);
    }
    blocks.clear();
  }
}

}  // namespace orthofed
