// y = x + gamma * z: a residual sum with optional LayerScale.
#pragma once
#include "engine/autograd/tape.h"

namespace orthofed {

// x in the residual stream's dtype, z in the compute dtype, gamma [cols] or undefined.
Var residual(Tape& tape, const Var& x, const Var& z, const Var& gamma);

// The kernel calls, for nodes that end in a residual sum.
Tensor residual_forward(const Tensor& x, const Tensor& z, const Var& gamma);
// dz; the gradient of x is dy itself. Gradient of gamma if it trains.
Tensor residual_backward(const Tensor& dy, const Tensor& z, const Var& gamma, DType compute);

}  // namespace orthofed
