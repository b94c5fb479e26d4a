// How the adapters' share of a linear layer's y and dx comes about (engine/ops/linear.h).
#pragma once
#include <cstdint>

namespace orthofed {

enum class AdapterStrategy : uint8_t {
  unmerged,  // by low-rank products of their own, added to y and dx
  extended,  // as the tail of the product's sum; in bf16 on a GPU, elsewhere as unmerged
  merged,    // in a copy of W, to which they are added before each step
};

}  // namespace orthofed
