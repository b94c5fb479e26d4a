// y = GELU(x), elementwise.
#pragma once
#include "engine/autograd/tape.h"
#include "kernels/gelu/gelu.h"

namespace orthofed {

Var gelu(Tape& tape, const Var& x, GeluKind kind);

// The kernel calls, for nodes that hold a GELU among other things.
Tensor gelu_forward(const Tensor& x, GeluKind kind);
void gelu_backward(const Tensor& dy, const Tensor& x, const Tensor& dx, GeluKind kind);

}  // namespace orthofed
