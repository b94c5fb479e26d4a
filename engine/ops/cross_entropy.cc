#include "engine/ops/cross_entropy.h"

namespace orthofed {

Var cross_entropy(Tape& tape, const Var& logits, const Tensor& labels, const Tensor& weights,
                  const Tensor& class_weights, const Tensor& prior,
                  const CrossEntropyOptions& options) {
  const bool needed = tape.needs({&logits});
  const Tensor& z = logits.value();
  const Tensor dz = needed ? Tensor::empty(z.shape(), z.dtype()) : Tensor();
  const Tensor loss = Tensor::empty({1}, z.dtype());
  dispatch_accum(z.dtype(), [&]<class R>(Tag<R>) {
    of_on(queue_of(z, gpu::cross_entropy_scratch(z.rows())), cross_entropy, R)(
        z.data<R>(), z.pitch(), labels.data<int32_t>(), weights.data<R>(),
        class_weights.defined() ? class_weights.data<R>() : nullptr,
        prior.defined() ? prior.data<R>() : nullptr, loss.data<R>(), nullptr,
        needed ? dz.data<R>() : nullptr, needed ? dz.pitch() : 0, z.rows(), z.cols(), options);
  });
  const Var y = tape.output(loss, needed);
  if (needed) {
    tape.record({y}, [logits, y, dz] {
      // The kernel differentiated a loss of 1; scale by what arrives (the weight of a micro-batch).
      const double seed = y.grad().item();
      if (seed != 1) {
        const Tensor host = dz.on(Device::cpu);  // [batch, classes]: small
        dispatch_accum(dz.dtype(), [&]<class R>(Tag<R>) {
          for (int64_t r = 0; r < dz.rows(); ++r)
            for (int64_t c = 0; c < dz.cols(); ++c) host.row<R>(r)[c] *= R(seed);
        });
        if (dz.device() != Device::cpu) dz.copy_from(host);
      }
      logits.give_grad(dz);
    });
  }
  return y;
}

}  // namespace orthofed
