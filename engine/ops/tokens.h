// From patches to tokens, and from tokens to one feature vector an image.
#pragma once
#include "engine/autograd/tape.h"

namespace orthofed {

// z [batch * patches, dim] (patches times the embedding matrix), cls [dim] or undefined,
// pos [tokens, dim] -> x [batch * tokens, dim] in accum(z): cls + pos and z + pos.
Var patch_embed(Tape& tape, const Var& z, const Var& cls, const Var& pos, int64_t batch);

// x [batch * tokens, dim] -> [batch, dim], token `index` of every image. The value is a view; the
// gradient of the other tokens is zero.
Var select_token(Tape& tape, const Var& x, int64_t batch, int64_t index);

// x [batch * tokens, dim] -> [batch, dim], the mean of tokens [from, tokens).
Var mean_tokens(Tape& tape, const Var& x, int64_t batch, int64_t from);

}  // namespace orthofed
