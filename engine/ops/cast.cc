#include "engine/ops/cast.h"

namespace orthofed {

Var cast(Tape& tape, const Var& x, DType dtype) {
  if (x.value().dtype() == dtype) return x;
  const bool needed = tape.needs({&x});
  const Var y = tape.output(x.value().to(dtype), needed);
  if (needed) tape.record({y}, [x, y] { x.give_grad(y.take_grad().to(x.value().dtype())); });
  return y;
}

}  // namespace orthofed
