#include "engine/ops/gelu.h"

namespace orthofed {

Tensor gelu_forward(const Tensor& x, GeluKind kind) {
  Tensor y = Tensor::empty({x.rows(), x.cols()}, x.dtype());
  dispatch(x.dtype(), [&]<class T>(Tag<T>) {
    of_on(queue_of(x), gelu_forward, T)(x.data<T>(), x.pitch(), y.data<T>(), y.pitch(), x.rows(),
                                        x.cols(), kind);
  });
  return y;
}

void gelu_backward(const Tensor& dy, const Tensor& x, const Tensor& dx, GeluKind kind) {
  dispatch(x.dtype(), [&]<class T>(Tag<T>) {
    of_on(queue_of(x), gelu_backward, T)(dy.data<T>(), dy.pitch(), x.data<T>(), x.pitch(),
                                         dx.data<T>(), dx.pitch(), x.rows(), x.cols(), kind);
  });
}

Var gelu(Tape& tape, const Var& x, GeluKind kind) {
  const bool needed = tape.needs({&x});
  const Var y = tape.output(gelu_forward(x.value(), kind), needed);
  if (needed) {
    tape.record({y}, [x, y, kind] {
      const Tensor dx = y.take_grad();  // in place: dx may be dy
      gelu_backward(dx, x.value(), dx, kind);
      x.give_grad(dx);
    });
  }
  return y;
}

}  // namespace orthofed
