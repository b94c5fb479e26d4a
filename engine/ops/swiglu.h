// y = silu(gate) * up, with x = [gate | up].
#pragma once
#include "engine/autograd/tape.h"

namespace orthofed {

Var swiglu(Tape& tape, const Var& x);  // [rows, 2 cols] -> [rows, cols]

// The kernel calls, for nodes that hold a SwiGLU among other things.
Tensor swiglu_forward(const Tensor& x);
void swiglu_backward(const Tensor& dy, const Tensor& x, const Tensor& dx);

}  // namespace orthofed
