#include "engine/ops/swiglu.h"

#include "kernels/swiglu/swiglu.h"

namespace orthofed {

Tensor swiglu_forward(const Tensor& x) {
  OF_CHECK(x.cols() % 2 == 0, "gate and up have as many columns");
  Tensor y = Tensor::empty({x.rows(), x.cols() / 2}, x.dtype());
  dispatch(x.dtype(), [&]<class T>(Tag<T>) {
    OF_RUN(queue_of(x), swiglu_forward,
           SwigluForward<T>{.x = x.data<T>(),
                            .ldx = x.pitch(),
                            .y = y.data<T>(),
                            .ldy = y.pitch(),
                            .rows = y.rows(),
                            .cols = y.cols()});
  });
  return y;
}

void swiglu_backward(const Tensor& dy, const Tensor& x, const Tensor& dx) {
  dispatch(x.dtype(), [&]<class T>(Tag<T>) {
    OF_RUN(queue_of(x), swiglu_backward,
           SwigluBackward<T>{.dy = dy.data<T>(),
                             .lddy = dy.pitch(),
                             .x = x.data<T>(),
                             .ldx = x.pitch(),
                             .dx = dx.data<T>(),
                             .lddx = dx.pitch(),
                             .rows = dy.rows(),
                             .cols = dy.cols()});
  });
}

Var swiglu(Tape& tape, const Var& x) {
  const bool needed = tape.needs({&x});
  const Var y = tape.output(swiglu_forward(x.value()), needed);
  if (needed) {
    tape.record({y}, [x, y] {
      const Tensor dx = Tensor::empty(x.shape(), x.value().dtype());
      swiglu_backward(y.grad(), x.value(), dx);
      x.give_grad(dx);
    });
  }
  return y;
}

}  // namespace orthofed
