#include "engine/ops/cross_entropy.h"

#include "kernels/elementwise/elementwise.h"

namespace orthofed {

Var cross_entropy(Tape& tape, const Var& logits, const Tensor& labels, const Tensor& weights,
                  const Tensor& class_weights, const Tensor& prior,
                  const CrossEntropyOptions& options) {
  const bool needed = tape.needs({&logits});
  const Tensor& z = logits.value();
  const Tensor dz = needed ? Tensor::empty(z.shape(), z.dtype()) : Tensor();
  const Tensor loss = Tensor::empty({1}, z.dtype());
  dispatch_accum(z.dtype(), [&]<class R>(Tag<R>) {
    OF_RUN(queue_of(z, gpu::cross_entropy_scratch(z.rows())), cross_entropy,
           CrossEntropy<R>{
               .logits = z.data<R>(),
               .ld = z.pitch(),
               .labels = labels.data<int32_t>(),
               .weights = weights.data<R>(),
               .class_weights = class_weights.defined() ? class_weights.data<R>() : nullptr,
               .prior = prior.defined() ? prior.data<R>() : nullptr,
               .loss = loss.data<R>(),
               .dlogits = needed ? dz.data<R>() : nullptr,
               .ldd = needed ? dz.pitch() : 0,
               .batch = z.rows(),
               .classes = z.cols(),
               .options = options});
  });
  const Var y = tape.output(loss, needed);
  if (needed) {
    tape.record({y}, [logits, y, dz] {
      // The kernel differentiated a loss of 1; scale by what arrives (the weight of a micro-batch).
      dispatch_accum(dz.dtype(), [&]<class R>(Tag<R>) {
        OF_RUN(queue_of(dz), scale,
               Scale<R>{.factor = y.grad().data<R>(),
                        .y = dz.data<R>(),
                        .ldy = dz.pitch(),
                        .rows = dz.rows(),
                        .cols = dz.cols()});
      });
      logits.give_grad(dz);
    });
  }
  return y;
}

}  // namespace orthofed
