// The emulated device's memory is by default the host's heap, where AddressSanitizer guards it.
// With the guard on it is a region that only kernels and copies may touch: everywhere else a read
// or write of it stops the program, as it would on a GPU. Tests of the engine run that way, so that
// no host code is left that looks into device memory.
#pragma once
#include <cstddef>

namespace orthofed::simt {

// Turns the guard on, for good, and before the first allocation. OF_SIMT_GUARD=1 does the same.
void guard_memory();

// Limits the device's memory, for tests of a full device; 0 is as much as the host gives.
void limit_memory(size_t bytes);
size_t free_memory();  // up to the limit; without one, SIZE_MAX

void* allocate(size_t bytes);  // aligned to 256; null where none is left
void release(void* memory, size_t bytes) noexcept;

// While one exists, this thread may touch the memory (all threads may: protection is the
// process's). They nest.
class OpenMemory {
 public:
  OpenMemory();
  ~OpenMemory();
  OpenMemory(const OpenMemory&) = delete;
  OpenMemory& operator=(const OpenMemory&) = delete;
};

}  // namespace orthofed::simt
