// Memory that every device of this build can read and write: managed by CUDA where there is a GPU,
// from the heap elsewhere, so that AddressSanitizer guards it.
#pragma once
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels/core/cuda_device.h"

namespace orthofed::test {

// Is there a GPU to test on? OF_REQUIRE_GPU=1 makes its absence a failure.
inline bool have_gpu() {
#ifdef OF_HAVE_CUDA
  static const bool found = cuda::device_count() > 0;
#else
  static const bool found = false;
#endif
  const char* required = std::getenv("OF_REQUIRE_GPU");
  if (!found && required != nullptr && required[0] == '1')
    ADD_FAILURE() << "OF_REQUIRE_GPU=1, but no GPU is here";
  return found;
}

struct FreeShared {
  bool managed = false;
  std::align_val_t alignment{64};
  void operator()(std::byte* p) const {
#ifdef OF_HAVE_CUDA
    if (managed) return cuda::release(p);
#endif
    ::operator delete(p, alignment);
  }
};
using SharedMemory = std::unique_ptr<std::byte, FreeShared>;

// The memory is aligned to 256 bytes on a GPU, and elsewhere to `alignment`.
inline SharedMemory allocate_shared(size_t bytes, size_t alignment = 64) {
#ifdef OF_HAVE_CUDA
  if (have_gpu()) return {static_cast<std::byte*>(cuda::allocate_managed(bytes)), FreeShared{true}};
#endif
  const std::align_val_t align{alignment};
  return {static_cast<std::byte*>(::operator new(bytes, align)), FreeShared{false, align}};
}

}  // namespace orthofed::test
