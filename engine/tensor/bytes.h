// Lists and numbers that kernels read beside tensors: arrays of descriptors, step counts, weights.
// They are copied to the thread's device as they are; the tensor owns the copy.
#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "engine/tensor/allocator.h"
#include "engine/tensor/tensor.h"

namespace orthofed {

template <class X>
Tensor bytes_of(const std::vector<X>& values) {
  static_assert(std::is_trivially_copyable_v<X>);
  const auto* first = reinterpret_cast<const uint8_t*>(values.data());
  const size_t bytes = values.size() * sizeof(X);
  return Tensor::of(std::span(first, bytes), {int64_t(bytes)});
}

// Returns the copy's address on its device.
template <class X>
X* as(const Tensor& bytes) {
  return reinterpret_cast<X*>(bytes.data<uint8_t>());
}

// Keeps lists that are the same in most steps. A list is uploaded when it is first seen; the same
// items give the same tensor for as long as this lives. X has no padding between its members.
class KeptLists {
 public:
  template <class X>
  const Tensor& of(const std::vector<X>& values) {
    static_assert(std::is_trivially_copyable_v<X>);
    const std::string bytes(reinterpret_cast<const char*>(values.data()),
                            values.size() * sizeof(X));
    const auto found = kept_.find(bytes);
    if (found != kept_.end()) return found->second;
    const LastingMemory kept;
    OF_CHECK(kept_.size() < kMost, "a list that is kept changes at every step");
    return kept_.emplace(bytes, bytes_of(values)).first->second;
  }

 private:
  static constexpr size_t kMost = 256;
  std::map<std::string, Tensor> kept_;
};

}  // namespace orthofed
