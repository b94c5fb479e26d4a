// y = layer_norm(x) * gamma + beta over the last dimension; x in the residual stream's dtype.
#pragma once
#include "engine/autograd/tape.h"

namespace orthofed {

// y has dtype `compute`; x, gamma, beta have accum(compute).
Var layer_norm(Tape& tape, const Var& x, const Var& gamma, const Var& beta, double eps,
               DType compute);

// The kernel calls, for nodes that hold a norm among other things.
struct LayerNormSaved {
  Tensor x, mean, rstd;
};
Tensor layer_norm_forward(const Tensor& x, const Var& gamma, const Var& beta, double eps,
                          DType compute, LayerNormSaved* saved);
// Gradients of gamma and beta if they train; dx (+ residual, which may be dx itself) if wanted.
void layer_norm_backward(const Tensor& dy, const LayerNormSaved& saved, const Var& gamma,
                         const Var& beta, const Tensor* residual, const Tensor* dx);

}  // namespace orthofed
