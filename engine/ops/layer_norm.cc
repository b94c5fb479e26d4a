#include "engine/ops/layer_norm.h"

#include "kernels/layer_norm/layer_norm.h"

namespace orthofed {

Tensor layer_norm_forward(const Tensor& x, const Var& gamma, const Var& beta, double eps,
                          DType compute, LayerNormSaved* saved) {
  Tensor y = Tensor::empty({x.rows(), x.cols()}, compute);
  const DType sums = accum(compute);
  LayerNormSaved s{x, Tensor::empty({x.rows()}, sums), Tensor::empty({x.rows()}, sums)};
  dispatch(compute, [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    OF_RUN(queue_of(x), layer_norm_forward,
           LayerNormForward<T>{.x = x.data<R>(),
                               .ldx = x.pitch(),
                               .gamma = gamma.value().data<R>(),
                               .beta = beta.value().data<R>(),
                               .y = y.data<T>(),
                               .ldy = y.pitch(),
                               .mean = s.mean.data<R>(),
                               .rstd = s.rstd.data<R>(),
                               .rows = x.rows(),
                               .cols = x.cols(),
                               .eps = eps});
  });
  if (saved != nullptr) *saved = std::move(s);
  return y;
}

void layer_norm_backward(const Tensor& dy, const LayerNormSaved& saved, const Var& gamma,
                         const Var& beta, const Tensor* residual, const Tensor* dx) {
  const Tensor& x = saved.x;
  dispatch(dy.dtype(), [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    // The affine first: dx may be written over the residual, never over dy or x.
    if (gamma.requires_grad() || beta.requires_grad()) {
      OF_CHECK(gamma.requires_grad() && beta.requires_grad(), "gamma and beta train together");
      const GradTarget dgamma = gamma.grad_target(), dbeta = beta.grad_target();
      OF_RUN(queue_of(x, gpu::layer_norm_backward_affine_scratch(x.rows(), x.cols())),
             layer_norm_backward_affine,
             LayerNormBackwardAffine<T>{.dy = dy.data<T>(),
                                        .lddy = dy.pitch(),
                                        .x = x.data<R>(),
                                        .ldx = x.pitch(),
                                        .mean = saved.mean.data<R>(),
                                        .rstd = saved.rstd.data<R>(),
                                        .dgamma = dgamma.buffer.data<R>(),
                                        .dbeta = dbeta.buffer.data<R>(),
                                        .accumulate = dgamma.accumulate,
                                        .rows = x.rows(),
                                        .cols = x.cols()});
    }
    if (dx != nullptr)
      OF_RUN(queue_of(x), layer_norm_backward,
             LayerNormBackward<T>{.dy = dy.data<T>(),
                                  .lddy = dy.pitch(),
                                  .x = x.data<R>(),
                                  .ldx = x.pitch(),
                                  .gamma = gamma.value().data<R>(),
                                  .mean = saved.mean.data<R>(),
                                  .rstd = saved.rstd.data<R>(),
                                  .residual = residual != nullptr ? residual->data<R>() : nullptr,
                                  .ldr = residual != nullptr ? residual->pitch() : 0,
                                  .dx = dx->data<R>(),
                                  .lddx = dx->pitch(),
                                  .rows = x.rows(),
                                  .cols = x.cols()});
  });
}

Var layer_norm(Tape& tape, const Var& x, const Var& gamma, const Var& beta, double eps,
               DType compute) {
  const bool needed = tape.needs({&x, &gamma, &beta});
  auto saved = std::make_shared<LayerNormSaved>();
  const Var y = tape.output(
      layer_norm_forward(x.value(), gamma, beta, eps, compute, needed ? saved.get() : nullptr),
      needed);
  if (needed) {
    tape.record({y}, [x, gamma, beta, y, saved] {
      const Tensor dx = x.requires_grad()
                            ? Tensor::empty({saved->x.rows(), saved->x.cols()}, saved->x.dtype())
                            : Tensor();
      layer_norm_backward(y.grad(), *saved, gamma, beta, nullptr, dx.defined() ? &dx : nullptr);
      if (dx.defined()) x.give_grad(dx);
    });
  }
  return y;
}

}  // namespace orthofed
