// Files may hold 64-bit integers, for which there is no dtype here: what they are used for (labels,
// counts, steps) fits in 32 bits.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "engine/tensor/tensor.h"

namespace orthofed {

// Returns i32, or f64 (exact up to 2^53) if a value does not fit. `source` holds shape.size()
// little-endian int64 and may be misaligned.
inline Tensor from_int64(const void* source, const Shape& shape) {
  std::vector<int64_t> values(static_cast<size_t>(shape.size()));
  if (!values.empty()) std::memcpy(values.data(), source, values.size() * sizeof(int64_t));
  using Limits = std::numeric_limits<int32_t>;
  const bool fits = std::all_of(values.begin(), values.end(),
                                [](int64_t v) { return v >= Limits::min() && v <= Limits::max(); });
  const OnDevice host(Device::cpu);
  if (fits) return Tensor::of(std::vector<int32_t>(values.begin(), values.end()), shape);
  return Tensor::of(std::vector<double>(values.begin(), values.end()), shape);
}

}  // namespace orthofed
