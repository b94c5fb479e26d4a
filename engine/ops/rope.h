// Rotary position embedding of q and k, in a packed qkv (kernels/rope/rope.h has the formula).
#pragma once
#include "engine/autograd/tape.h"

namespace orthofed {

// The angles of every patch; empty for a model with a position embedding.
struct Rotation {
  Tensor cos, sin;     // [patches, head_dim / 2] in accum(compute), dense
  int64_t prefix = 0;  // tokens before the patches, which are not turned
  bool defined() const { return cos.defined(); }
};

// qkv [batch * tokens, 3 * dim], in place; the gradient of q and k is turned back, in place.
void rope_forward(const Tensor& qkv, const Rotation& rotation, int64_t batch, int64_t heads);
void rope_backward(const Tensor& dqkv, const Rotation& rotation, int64_t batch, int64_t heads);

// The primitive op.
Var rope(Tape& tape, const Var& qkv, const Rotation& rotation, int64_t batch, int64_t heads);

}  // namespace orthofed
