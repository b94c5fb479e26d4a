#include "engine/tensor/allocator.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/tensor/graph.h"
#include "kernels/core/check.h"
#include "kernels/core/cuda_device.h"
#include "kernels/simt/memory.h"

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

std::string text_of_bytes(size_t bytes) {
  const double kib = double(bytes) / 1024;
  if (kib < 1024) return fmt::format("{:.1f} KiB", kib);
  return kib < 1 << 20 ? fmt::format("{:.1f} MiB", kib / 1024)
                       : fmt::format("{:.1f} GiB", kib / (1 << 20));
}

struct Cache {
  std::mutex mutex;
  std::unordered_map<size_t, std::vector<void*>> free;
  struct Block {
    size_t bytes = 0;            // 0 while it is cached
    MemoryPool* pool = nullptr;  // null: everybody's
  };
  std::map<char*, Block> blocks;  // every one ever asked for
  AllocatorStats stats;
};

// Where the calling thread's allocations come from.
struct Source {
  MemoryPool* pool = nullptr;
  bool closed = false, lasting = false;
};
thread_local Source source;

// Never destroyed: tensors with static lifetime may be freed after any static here.
Cache& cache(Device device) {
  static Cache* instances = new Cache[3];
  return instances[int(device)];
}

// Null where there is no more.
void* ask(size_t bytes, Device device) {
  switch (device) {
    case Device::cpu:
      return std::aligned_alloc(kAlignment, bytes);
    case Device::simt:
      return simt::allocate(bytes);
    case Device::cuda:
#ifdef OF_HAVE_CUDA
      return cuda::allocate(bytes);
#endif
      break;
  }
  return nullptr;
}

void give_back(void* block, size_t bytes, Device device) noexcept {
  switch (device) {
    case Device::cpu:
      return std::free(block);
    case Device::simt:
      return simt::release(block, bytes);
    case Device::cuda:
#ifdef OF_HAVE_CUDA
      return cuda::release(block);
#endif
      break;
  }
}

std::string free_memory(Device device) {
  size_t bytes = SIZE_MAX;
  if (device == Device::simt) bytes = simt::free_memory();
#ifdef OF_HAVE_CUDA
  if (device == Device::cuda) bytes = cuda::free_memory();
#endif
  return bytes == SIZE_MAX ? "" : fmt::format(", {} are free", text_of_bytes(bytes));
}

// AddressSanitizer knows no GPU's addresses.
void poison(Device device, const void* block, size_t bytes) {
  if (device != Device::cuda) ASAN_POISON_MEMORY_REGION(block, bytes);
}
void unpoison(Device device, const void* block, size_t bytes) {
  if (device != Device::cuda) ASAN_UNPOISON_MEMORY_REGION(block, bytes);
}

void give_back_cached(Cache& c, Device device) {
  for (auto& [size, blocks] : c.free) {
    for (void* block : blocks) {
      unpoison(device, block, size);
      c.blocks.erase(static_cast<char*>(block));
      give_back(block, size, device);
      c.stats.bytes_reserved -= int64_t(size);
    }
    blocks.clear();
  }
}

}  // namespace

void* allocate(size_t bytes, Device device) {
  const size_t size = size_class(bytes);
  const bool pooled = source.pool != nullptr && source.pool->device() == device;
  MemoryPool* const pool = pooled && !source.lasting ? source.pool : nullptr;
  Cache& c = cache(device);
  std::lock_guard lock(c.mutex);
  void* block = nullptr;
  auto& list = pool != nullptr ? pool->free_[size] : c.free[size];
  if (pooled && source.closed && (pool == nullptr || list.empty()))
    refuse_while_capturing(device,
                           fmt::format("{} more of memory, which the step before it did not need",
                                       text_of_bytes(bytes)));
  if (!list.empty()) {
    block = list.back();
    list.pop_back();
  } else {
    block = ask(size, device);
    if (block == nullptr) {  // blocks of other sizes may be what is missing
      give_back_cached(c, device);
      block = ask(size, device);
    }
    if (block == nullptr)
      throw OutOfMemory(
          fmt::format("device {} is out of memory: {} more were needed, {} are in "
                      "use{}",
                      name_of(device), text_of_bytes(size),
                      text_of_bytes(size_t(c.stats.bytes_in_use)), free_memory(device)));
    ++c.stats.heap_allocations;
    c.blocks.emplace(static_cast<char*>(block), Cache::Block{0, pool});
    c.stats.bytes_reserved += int64_t(size);
  }
  c.blocks.find(static_cast<char*>(block))->second.bytes = bytes;
  c.stats.bytes_in_use += int64_t(size);
  c.stats.peak_bytes_in_use = std::max(c.stats.peak_bytes_in_use, c.stats.bytes_in_use);
  if (pool != nullptr) {
    ++pool->in_use_;
    unpoison(device, block, size);
    return block;
  }
  unpoison(device, block, bytes);
  poison(device, static_cast<char*>(block) + bytes, size - bytes);
  return block;
}

void release(void* block, size_t bytes, Device device) noexcept {
  if (block == nullptr) return;
  const size_t size = size_class(bytes);
  Cache& c = cache(device);
  std::lock_guard lock(c.mutex);
  Cache::Block& b = c.blocks.find(static_cast<char*>(block))->second;
  b.bytes = 0;
  c.stats.bytes_in_use -= int64_t(size);
  if (b.pool != nullptr) {
    --b.pool->in_use_;
    b.pool->free_[size].push_back(block);
    return;
  }
  poison(device, block, size);
  c.free[size].push_back(block);
}

MemoryPool::~MemoryPool() {
  Cache& c = cache(device_);
  std::lock_guard lock(c.mutex);
  for (auto& [address, block] : c.blocks)
    if (block.pool == this) block.pool = nullptr;
  for (auto& [size, blocks] : free_)
    for (void* block : blocks) {
      poison(device_, block, size);
      c.free[size].push_back(block);
    }
}

FromPool::FromPool(MemoryPool& pool, bool closed) {
  OF_CHECK(source.pool == nullptr, "one pool at a time");
  source = {&pool, closed, false};
}

FromPool::~FromPool() {
  source = {};
}

LastingMemory::LastingMemory() : before_(std::exchange(source.lasting, true)) {}

LastingMemory::~LastingMemory() {
  source.lasting = before_;
}

BlockOfMemory block_of(const void* address, Device device) {
  Cache& c = cache(device);
  std::lock_guard lock(c.mutex);
  auto* p = static_cast<char*>(const_cast<void*>(address));
  auto it = c.blocks.upper_bound(p);
  if (it == c.blocks.begin()) return {};
  --it;
  if (p >= it->first + it->second.bytes) return {};
  return {it->first, it->second.bytes};
}

AllocatorStats allocator_stats(Device device) {
  Cache& c = cache(device);
  std::lock_guard lock(c.mutex);
  return c.stats;
}

void reset_peak(Device device) {
  Cache& c = cache(device);
  std::lock_guard lock(c.mutex);
  c.stats.peak_bytes_in_use = c.stats.bytes_in_use;
}

void release_cached(Device device) {
  Cache& c = cache(device);
  std::lock_guard lock(c.mutex);
  give_back_cached(c, device);
}

}  // namespace orthofed
