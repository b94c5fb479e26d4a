#include "engine/ops/sum.h"

#include <algorithm>

namespace orthofed {

Var sum(Tape& tape, const std::vector<Var>& scalars) {
  OF_CHECK(!scalars.empty(), "nothing to sum");
  const Tensor total = scalars.front().value().clone();
  for (size_t i = 1; i < scalars.size(); ++i) total.add(scalars[i].value());
  const bool needed =
      tape.recording() &&
      std::any_of(scalars.begin(), scalars.end(), [](const Var& s) { return s.requires_grad(); });
  const Var y = tape.output(total, needed);
  if (needed) {
    tape.record({y}, [scalars, y] {
      for (const Var& s : scalars)
        if (s.requires_grad()) s.give_grad(y.grad().clone());
    });
  }
  return y;
}

}  // namespace orthofed
