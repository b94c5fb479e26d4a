#include "engine/tensor/allocator.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

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
  std::map<char*, size_t> in_use;  // every block ever asked for; 0 bytes while it is cached
  AllocatorStats stats;
};

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
      c.in_use.erase(static_cast<char*>(block));
      give_back(block, size, device);
      c.stats.bytes_reserved -= int64_t(size);
    }
    blocks.clear();
  }
}

}  // namespace

void* allocate(size_t bytes, Device device) {
  const size_t size = size_class(bytes);
  Cache& c = cache(device);
  std::lock_guard lock(c.mutex);
  void* block = nullptr;
  auto& list = c.free[size];
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
    c.in_use.emplace(static_cast<char*>(block), 0);
    c.stats.bytes_reserved += int64_t(size);
  }
  c.in_use.find(static_cast<char*>(block))->second = bytes;
  c.stats.bytes_in_use += int64_t(size);
  c.stats.peak_bytes_in_use = std::max(c.stats.peak_bytes_in_use, c.stats.bytes_in_use);
  unpoison(device, block, bytes);
  poison(device, static_cast<char*>(block) + bytes, size - bytes);
  return block;
}

void release(void* block, size_t bytes, Device device) noexcept {
  if (block == nullptr) return;
  const size_t size = size_class(bytes);
  poison(device, block, size);
  Cache& c = cache(device);
  std::lock_guard lock(c.mutex);
  c.in_use.find(static_cast<char*>(block))->second = 0;
  c.free[size].push_back(block);
  c.stats.bytes_in_use -= int64_t(size);
}

BlockOfMemory block_of(const void* address, Device device) {
  Cache& c = cache(device);
  std::lock_guard lock(c.mutex);
  auto* p = static_cast<char*>(const_cast<void*>(address));
  auto it = c.in_use.upper_bound(p);
  if (it == c.in_use.begin()) return {};
  --it;
  if (p >= it->first + it->second) return {};
  return {it->first, it->second};
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
