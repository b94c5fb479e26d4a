// The few CUDA runtime calls that code outside .cu files makes, without CUDA's headers (which
// nobody has who builds without nvcc). Defined only in a build with device cuda (OF_HAVE_CUDA).
#pragma once
#include <cstddef>

#include "kernels/core/device.h"

namespace orthofed::cuda {

int device_count() noexcept;  // 0 without a driver, too

void* allocate_managed(size_t bytes);  // at the same address on host and device
void release(void* memory) noexcept;   // what any allocate_ function here gave; null is fine

void synchronize(const Stream& stream);  // throws Error if what was queued has failed

}  // namespace orthofed::cuda
