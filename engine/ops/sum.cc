#include "engine/ops/sum.h"

#include <algorithm>

namespace orthofed {

Var sum(Tape& tape, const std::vector<Var>& scalars) {
  OF_CHECK(!scalars.empty(), "nothing to sum");
  double total = 0;
  for (const Var& s : scalars) total += s.value().item();
  const DType dtype = scalars.front().value().dtype();
  const bool needed =
      tape.recording() &&
      std::any_of(scalars.begin(), scalars.end(), [](const Var& s) { return s.requires_grad(); });
  const Var y = tape.output(Tensor::full({1}, dtype, total), needed);
  if (needed) {
    tape.record({y}, [scalars, y] {
      for (const Var& s : scalars)
        if (s.requires_grad()) s.give_grad(y.grad().clone());
    });
  }
  return y;
}

}  // namespace orthofed
