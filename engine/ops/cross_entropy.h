// The classification loss (kernels/cross_entropy/cross_entropy.h has the formula).
#pragma once
#include "engine/autograd/tape.h"
#include "kernels/cross_entropy/cross_entropy.h"

namespace orthofed {

// logits [batch, classes], labels i32 [batch], weights [batch] (0: padding); class_weights and
// prior [classes] or undefined. Returns the scalar loss.
Var cross_entropy(Tape& tape, const Var& logits, const Tensor& labels, const Tensor& weights,
                  const Tensor& class_weights, const Tensor& prior,
                  const CrossEntropyOptions& options);

}  // namespace orthofed
