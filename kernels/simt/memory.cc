#include "kernels/simt/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#include "kernels/core/check.h"

namespace orthofed::simt {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kPage = 4096;
constexpr size_t kArenaBytes = size_t{16} << 30;  // of addresses; pages come with their first use

struct Arena {
  std::mutex mutex;
  bool guarded = false;
  char* begin = nullptr;
  size_t used = 0;  // of the arena
  int open = 0;
  size_t limit = SIZE_MAX, allocated = 0;
};

Arena& arena() {
  static Arena* instance = [] {
    auto* a = new Arena;
    const char* wish = std::getenv("OF_SIMT_GUARD");
    a->guarded = wish != nullptr && wish[0] == '1';
    return a;
  }();
  return *instance;
}

size_t rounded(size_t bytes) {
  return std::max((bytes + kAlignment - 1) / kAlignment, size_t{1}) * kAlignment;
}

void protect(const Arena& a, int protection) {
  const size_t bytes = (a.used + kPage - 1) / kPage * kPage;
  if (bytes > 0 && mprotect(a.begin, bytes, protection) != 0)
    throw Error(std::string("cannot guard emulated memory: ") + std::strerror(errno));
}

}  // namespace

void guard_memory() {
  arena().guarded = true;
}

void limit_memory(size_t bytes) {
  Arena& a = arena();
  std::lock_guard lock(a.mutex);
  a.limit = bytes == 0 ? SIZE_MAX : bytes;
}

size_t free_memory() {
  Arena& a = arena();
  std::lock_guard lock(a.mutex);
  return a.limit == SIZE_MAX ? SIZE_MAX : a.limit - std::min(a.limit, a.allocated);
}

void* allocate(size_t bytes) {
  Arena& a = arena();
  std::lock_guard lock(a.mutex);
  bytes = rounded(bytes);
  if (a.limit < a.allocated || bytes > a.limit - a.allocated) return nullptr;
  if (!a.guarded) {
    void* memory = std::aligned_alloc(kAlignment, bytes);
    if (memory != nullptr) a.allocated += bytes;
    return memory;
  }
  if (a.begin == nullptr) {
    void* memory =
        mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
      throw Error(std::string("no memory for the emulated device: ") + std::strerror(errno));
    a.begin = static_cast<char*>(memory);
  }
  if (a.used + bytes > kArenaBytes) return nullptr;
  void* memory = a.begin + a.used;
  a.used += bytes;
  a.allocated += bytes;
  if (a.open > 0) protect(a, PROT_READ | PROT_WRITE);
  return memory;
}

void release(void* memory, size_t bytes) noexcept {
  Arena& a = arena();
  std::lock_guard lock(a.mutex);
  if (memory != nullptr) a.allocated -= rounded(bytes);
  if (!a.guarded) std::free(memory);  // the arena only grows: the caching allocator reuses blocks
}

OpenMemory::OpenMemory() {
  Arena& a = arena();
  if (!a.guarded) return;
  std::lock_guard lock(a.mutex);
  if (a.open++ == 0) protect(a, PROT_READ | PROT_WRITE);
}

OpenMemory::~OpenMemory() {
  Arena& a = arena();
  if (!a.guarded) return;
  std::lock_guard lock(a.mutex);
  if (--a.open == 0) protect(a, PROT_NONE);
}

}  // namespace orthofed::simt
