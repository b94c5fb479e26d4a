// y = softmax(x) over the last dimension.
#pragma once
#include "engine/autograd/tape.h"

namespace orthofed {

Var softmax(Tape& tape, const Var& x);

}  // namespace orthofed
