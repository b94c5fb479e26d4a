// Tensors by name, in the names' order: an adapter, a checkpoint, an update. This order makes
// files, and sums over tensors, deterministic.
#pragma once
#include <map>
#include <string>

#include "engine/tensor/tensor.h"

namespace orthofed {

using TensorMap = std::map<std::string, Tensor>;

}  // namespace orthofed
