// From patches to tokens, and from tokens to one feature vector an image.
#pragma once
#include "engine/autograd/tape.h"

namespace orthofed {

// z [batch * patches, dim] (patches times the embedding matrix), own [prefix, dim] (the tokens
// before them) or undefined, pos [prefix + patches, dim] -> x [batch * tokens, dim] in accum(z):
// own + pos and z + pos.
Var patch_embed(Tape& tape, const Var& z, const Var& own, const Var& pos, int64_t batch);

// x [batch * tokens, dim] -> [batch, dim], token `index` of every image. The value is a view; the
// gradient of the other tokens is zero.
Var select_token(Tape& tape, const Var& x, int64_t batch, int64_t index);

// x [batch * tokens, dim] -> [batch, dim], the mean of tokens [from, tokens).
Var mean_tokens(Tape& tape, const Var& x, int64_t batch, int64_t from);

// a [batch, n], b [batch, m] -> [batch, n + m]
Var side_by_side(Tape& tape, const Var& a, const Var& b);

}  // namespace orthofed
