// The same values in another dtype: from the residual stream into a matrix product and back.
#pragma once
#include "engine/autograd/tape.h"

namespace orthofed {

Var cast(Tape& tape, const Var& x, DType dtype);  // x itself where the dtype is already right

}  // namespace orthofed
