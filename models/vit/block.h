// A pre-norm transformer block has two halves, each of which is one autograd node:
//
//   attention_half:  y = x + ls1 * proj(attention(qkv(norm1(x))))
//   mlp_half:        y = x + ls2 * fc2(gelu(fc1(norm2(x)))), or swiglu in gelu's place
//
// Some families normalise every head's q and k (qk-norm) or turn them by their patch's angles
// (rotary position embedding) before they meet.
//
// Forward and backward are straight sequences of kernel calls, so the gradient of the residual
// flows into LayerNorm's backward and is never summed separately. tests/models/vit/block_test.cc
// proves each half equal to its composition from the primitive ops.
#pragma once
#include "engine/ops/gelu.h"
#include "engine/ops/linear.h"
#include "engine/ops/rope.h"

namespace orthofed {

struct Block {
  Var norm1_weight, norm1_bias;
  Linear qkv, proj;
  Var q_norm_weight, q_norm_bias, k_norm_weight, k_norm_bias;  // [head_dim], or undefined
  Var ls1;                                                     // LayerScale, or undefined
  Var norm2_weight, norm2_bias;
  Linear fc1, fc2;  // gated: fc1 is [gate; up], twice as wide as fc2 reads
  Var ls2;
};

struct BlockOptions {
  int64_t heads = 0;
  double eps = 1e-6;
  GeluKind gelu = GeluKind::erf;
  DType compute = DType::f32;
  bool gated = false;
  const Rotation* rotation = nullptr;  // null or empty: none
};

// x [batch * tokens, dim] in accum(compute); block must outlive the tape's backward. observer:
// of the adapters' slices during backward, or null.
Var attention_half(Tape& tape, const Block& block, const Var& x, int64_t batch,
                   const BlockOptions& options, SliceObserver* observer);
Var mlp_half(Tape& tape, const Block& block, const Var& x, const BlockOptions& options,
             SliceObserver* observer);

}  // namespace orthofed
