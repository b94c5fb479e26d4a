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
    of_on(queue_of(x), layer_norm_forward, T)(
        x.data<R>(), x.pitch(), gamma.value().data<R>(), beta.value().data<R>(), y.data<T>(),
        y.pitch(), s.mean.data<R>(), s.rstd.data<R>(), x.rows(), x.cols(), eps);
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
      of_on(queue_of(x, gpu::layer_norm_backward_affine_scratch(x.rows(), x.cols())),
            layer_norm_backward_affine, T)(dy.data<T>(), dy.pitch(), x.data<R>(), x.pitch(),
                                           saved.mean.data<R>(), saved.rstd.data<R>(),
                                           dgamma.buffer.data<R>(), dbeta.buffer.data<R>(),
                                           dgamma.accumulate, x.rows(), x.cols());
    }
    if (dx != nullptr)
      of_on(queue_of(x), layer_norm_backward, T)(
          dy.data<T>(), dy.pitch(), x.data<R>(), x.pitch(), gamma.value().data<R>(),
          saved.mean.data<R>(), saved.rstd.data<R>(),
          residual != nullptr ? residual->data<R>() : nullptr,
          residual != nullptr ? residual->pitch() : 0, dx->data<R>(), dx->pitch(), x.rows(),
          x.cols());
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
