// Multi-head self-attention on a packed qkv (kernels/attention/attention.h has the layout).
#pragma once
#include "engine/autograd/tape.h"

namespace orthofed {

// qkv [batch * tokens, 3 * dim] -> [batch * tokens, dim]; scale = 1 / sqrt(dim / heads).
Var attention(Tape& tape, const Var& qkv, int64_t batch, int64_t heads);

// The kernel calls, for nodes that hold attention among other things. lse null: inference.
Tensor attention_forward(const Tensor& qkv, int64_t batch, int64_t heads, Tensor* lse);
Tensor attention_backward(const Tensor& qkv, const Tensor& out, const Tensor& dout,
                          const Tensor& lse, int64_t batch, int64_t heads);

}  // namespace orthofed
