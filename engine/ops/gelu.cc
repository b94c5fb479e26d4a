#include "engine/ops/gelu.h"

namespace orthofed {

Tensor gelu_forward(const Tensor& x, GeluKind kind) {
  Tensor y = Tensor::empty({x.rows(), x.cols()}, x.dtype());
  dispatch(x.dtype(), [&]<class T>(Tag<T>) {
    OF_RUN(queue_of(x), gelu_forward,
           GeluForward<T>{.x = x.data<T>(),
                          .ldx = x.pitch(),
                          .y = y.data<T>(),
                          .ldy = y.pitch(),
                          .rows = x.rows(),
                          .cols = x.cols(),
                          .kind = kind});
  });
  return y;
}

void gelu_backward(const Tensor& dy, const Tensor& x, const Tensor& dx, GeluKind kind) {
  dispatch(x.dtype(), [&]<class T>(Tag<T>) {
    OF_RUN(queue_of(x), gelu_backward,
           GeluBackward<T>{.dy = dy.data<T>(),
                           .lddy = dy.pitch(),
                           .x = x.data<T>(),
                           .ldx = x.pitch(),
                           .dx = dx.data<T>(),
                           .lddx = dx.pitch(),
                           .rows = x.rows(),
                           .cols = x.cols(),
                           .kind = kind});
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
