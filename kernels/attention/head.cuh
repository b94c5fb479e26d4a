// Where one head lies in what an attention kernel is given: the struct of arguments and, as a float,
// its scale.
#pragma once
#include "kernels/attention/attention.h"
#include "kernels/core/warp.cuh"

namespace orthofed::gpu {
namespace {

// Offsets of the first token of an (image, head), the task'th of batch * heads.
struct Head {
  int64_t q, k, v;  // in qkv and dqkv
  int64_t out;      // in out and dout
  int64_t lse;
  __device__ Head(const AttentionShape& s, int64_t task) {
    const int64_t image = task / s.heads, first = task % s.heads * s.head_dim;
    q = image * s.tokens * s.ld_qkv + first;
    k = q + s.heads * s.head_dim;
    v = k + s.heads * s.head_dim;
    out = image * s.tokens * s.ld_out + first;
    lse = task * s.tokens;
  }
};

// Blocks for the whole batch, `parts` a head. The grid has one dimension: the others end at 65,535.
inline unsigned blocks(const AttentionShape& s, int64_t parts) {
  const int64_t count = s.batch * s.heads * parts;
  OF_CHECK(s.tokens <= 1 << 24 && count <= 0x7fffffff,
           "attention: more tokens than a grid has room for");
  return unsigned(count);
}

}  // namespace
}  // namespace orthofed::gpu
