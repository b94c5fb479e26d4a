// The emulated device's memory. By default it is the host's heap, where AddressSanitizer guards it.
// With the guard on it is a region that nothing but kernels and copies may touch: everywhere else a
// read or write of it stops the program, as it would on a GPU. Tests of the engine run that way, so
// that no host code is left that looks into device memory.
#pragma once
#include <cstddef>

namespace orthofed::simt {

// Before the first allocation; there is no way back. OF_SIMT_GUARD=1 does the same.
void guard_memory();

// How much the device has: 0 is as much as the host gives. For tests of a full device.
void limit_memory(size_t bytes);
size_t free_memory();  // up to the limit; without one, SIZE_MAX

void* allocate(size_t bytes);  // aligned to 256; null where there is no more
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
