// Lists and numbers that kernels read beside tensors: arrays of descriptors, step counts, weights.
// They are copied to the thread's device as they are; the tensor owns the copy.
#pragma once
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "engine/tensor/tensor.h"

namespace orthofed {

template <class X>
Tensor bytes_of(const std::vector<X>& values) {
  static_assert(std::is_trivially_copyable_v<X>);
  const auto* first = reinterpret_cast<const uint8_t*>(values.data());
  const size_t bytes = values.size() * sizeof(X);
  return Tensor::of(std::span(first, bytes), {int64_t(bytes)});
}

// The copy's address, on its device.
template <class X>
X* as(const Tensor& bytes) {
  return reinterpret_cast<X*>(bytes.data<uint8_t>());
}

}  // namespace orthofed
