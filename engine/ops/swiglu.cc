#include "engine/ops/swiglu.h"

#include "kernels/swiglu/swiglu.h"

namespace orthofed {

Tensor swiglu_forward(const Tensor& x) {
  OF_CHECK(x.cols() % 2 == 0, "gate and up have as many columns");
  Tensor y = Tensor::empty({x.rows(), x.cols() / 2}, x.dtype());
  dispatch(x.dtype(), [&]<class T>(Tag<T>) {
    of_on(queue_of(x), swiglu_forward, T)(x.data<T>(), x.pitch(), y.data<T>(), y.pitch(), y.rows(),
                                          y.cols());
  });
  return y;
}

void swiglu_backward(const Tensor& dy, const Tensor& x, const Tensor& dx) {
  dispatch(x.dtype(), [&]<class T>(Tag<T>) {
    of_on(queue_of(x), swiglu_backward, T)(dy.data<T>(), dy.pitch(), x.data<T>(), x.pitch(),
                                           dx.data<T>(), dx.pitch(), dy.rows(), dy.cols());
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
