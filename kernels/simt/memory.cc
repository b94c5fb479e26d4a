#include "kernels/simt/memory.h"

#include <sys/mman.h>

#include <cerrno>
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
  size_t used = 0;
  int open = 0;
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

void protect(const Arena& a, int protection) {
  const size_t bytes = (a.used + kPage - 1) / kPage * kPage;
  if (bytes > 0 && mprotect(a.begin, bytes, protection) != 0)
    throw Error(std::string("cannot guard emulated memory: ") + std::strerror(errno));
}

}  // namespace

void guard_memory() {
  arena().guarded = true;
}

void* allocate(size_t bytes) {
  Arena& a = arena();
  std::lock_guard lock(a.mutex);
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (!a.guarded) {
    void* memory = std::aligned_alloc(kAlignment, bytes == 0 ? kAlignment : bytes);
    if (memory == nullptr) throw Error("no memory for the emulated device");
    return memory;
  }
  if (a.begin == nullptr) {
    void* memory =
        mmap(nullptr, kArenaBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
      throw Error(std::string("no memory for the emulated device: ") + std::strerror(errno));
    a.begin = static_cast<char*>(memory);
  }
  if (a.used + bytes > kArenaBytes) throw Error("the emulated device's memory is used up");
  void* memory = a.begin + a.used;
  a.used += bytes;
  if (a.open > 0) protect(a, PROT_READ | PROT_WRITE);
  return memory;
}

void release(void* memory, size_t) noexcept {
  Arena& a = arena();
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
