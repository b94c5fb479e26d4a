// The sum of scalars: several losses into one.
#pragma once
#include <vector>

#include "engine/autograd/tape.h"

namespace orthofed {

Var sum(Tape& tape, const std::vector<Var>& scalars);

}  // namespace orthofed
