#include "engine/ops/residual.h"

#include "kernels/residual/residual.h"

namespace orthofed {
Tensor residual_forward(const Tensor& x, const Tensor& z, const Var& gamma) {
  const Tensor y = Tensor::empty({x.rows(), x.cols()}, x.dtype());
  dispatch(z.dtype(), [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    of_on(queue_of(x), residual_forward, T)(x.data<R>(), x.pitch(), z.data<T>(), z.pitch(),
                                            data_or_null<R>(gamma), y.data<R>(), y.pitch(),
                                            x.rows(), x.cols());
  });
  return y;
}

Tensor residual_backward(const Tensor& dy, const Tensor& z, const Var& gamma, DType compute) {
  const Tensor dz = Tensor::empty({dy.rows(), dy.cols()}, compute);
  dispatch(compute, [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    of_on(queue_of(dy), residual_backward, T)(dy.data<R>(), dy.pitch(), data_or_null<R>(gamma),
                                              dz.data<T>(), dz.pitch(), dy.rows(), dy.cols());
    if (gamma.requires_grad()) {
      const GradTarget dgamma = gamma.grad_target();
      of_on(queue_of(dy, gpu::residual_backward_gamma_scratch(dy.rows(), dy.cols())),
            residual_backward_gamma, T)(dy.data<R>(), dy.pitch(), z.data<T>(), z.pitch(),
                                        dgamma.buffer.data<R>(), dgamma.accumulate, dy.rows(),
                                        dy.cols());
    }
  });
  return dz;
}

Var residual(Tape& tape, const Var& x, const Var& z, const Var& gamma) {
  const bool needed = tape.needs({&x, &z, &gamma});
  const Var y = tape.output(residual_forward(x.value(), z.value(), gamma), needed);
  if (needed) {
    tape.record({y}, [x, z, gamma, y] {
      if (z.requires_grad() || gamma.requires_grad()) {
        const Tensor dz = residual_backward(y.grad(), z.value(), gamma, z.value().dtype());
        if (z.requires_grad()) z.give_grad(dz);
      }
      if (x.requires_grad()) x.give_grad(y.take_grad());
    });
  }
  return y;
}

}  // namespace orthofed
