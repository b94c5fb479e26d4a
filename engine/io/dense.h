// The rows of images and files follow each other without padding: a row of an RGB image is [W, 3],
// and padding each pixel to 16 bytes would take five times the memory.
#pragma once
#include <memory>

#include "engine/tensor/allocator.h"
#include "engine/tensor/tensor.h"

namespace orthofed {

inline Tensor dense_tensor(const Shape& shape, DType dtype) {
  const size_t bytes = static_cast<size_t>(shape.size()) * size_of(dtype);
  void* block = allocate(bytes, Device::cpu);
  std::shared_ptr<const void> owner(
      block, [bytes](const void* p) { release(const_cast<void*>(p), bytes, Device::cpu); });
  return Tensor::view(std::move(owner), block, shape, dtype);
}

}  // namespace orthofed
