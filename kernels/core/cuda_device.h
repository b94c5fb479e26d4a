// The few CUDA runtime calls that code outside .cu files makes, without CUDA's headers (which
// nobody has who builds without nvcc). Defined only in a build with device cuda (OF_HAVE_CUDA).
#pragma once
#include <cstddef>
#include <functional>

#include "kernels/core/device.h"

namespace orthofed::cuda {

int device_count() noexcept;  // 0 without a driver, too

void* allocate(size_t bytes);          // device memory, aligned to 256; throws Error
void* allocate_managed(size_t bytes);  // at the same address on host and device
void release(void* memory) noexcept;   // what any allocate_ function here gave; null is fine

void synchronize(const Stream& stream);  // throws Error if what was queued has failed

// Seconds from the start to the end of what `work` queues, by the GPU's clock. Synchronises.
double seconds_of(const Stream& stream, const std::function<void()>& work);

// Rows of `width` bytes, `pitch` apart; host and device ends are told from the addresses. Done, as
// far as the host can tell, when it returns.
void copy_rows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
               size_t rows, const Stream& stream);
void zero_rows(void* data, size_t pitch, size_t width, size_t rows, const Stream& stream);

}  // namespace orthofed::cuda
