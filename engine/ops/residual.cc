#include "engine/ops/residual.h"

#include "kernels/residual/residual.h"

namespace orthofed {
Tensor residual_forward(const Tensor& x, const Tensor& z, const Var& gamma) {
  const Tensor y = Tensor::empty({x.rows(), x.cols()}, x.dtype());
  dispatch(z.dtype(), [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    OF_RUN(queue_of(x), residual_forward,
           ResidualForward<T>{.x = x.data<R>(),
                              .ldx = x.pitch(),
                              .z = z.data<T>(),
                              .ldz = z.pitch(),
                              .gamma = data_or_null<R>(gamma),
                              .y = y.data<R>(),
                              .ldy = y.pitch(),
                              .rows = x.rows(),
                              .cols = x.cols()});
  });
  return y;
}

Tensor residual_backward(const Tensor& dy, const Tensor& z, const Var& gamma, DType compute) {
  const Tensor dz = Tensor::empty({dy.rows(), dy.cols()}, compute);
  dispatch(compute, [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    OF_RUN(queue_of(dy), residual_backward,
           ResidualBackward<T>{.dy = dy.data<R>(),
                               .lddy = dy.pitch(),
                               .gamma = data_or_null<R>(gamma),
                               .dz = dz.data<T>(),
                               .lddz = dz.pitch(),
                               .rows = dy.rows(),
                               .cols = dy.cols()});
    if (gamma.requires_grad()) {
      const GradTarget dgamma = gamma.grad_target();
      OF_RUN(queue_of(dy, gpu::residual_backward_gamma_scratch(dy.rows(), dy.cols())),
             residual_backward_gamma,
             ResidualBackwardGamma<T>{.dy = dy.data<R>(),
                                      .lddy = dy.pitch(),
                                      .z = z.data<T>(),
                                      .ldz = z.pitch(),
                                      .dgamma = dgamma.buffer.data<R>(),
                                      .accumulate = dgamma.accumulate,
                                      .rows = dy.rows(),
                                      .cols = dy.cols()});
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
