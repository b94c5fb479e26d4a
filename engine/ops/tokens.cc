#include "engine/ops/tokens.h"

#include "kernels/patch_embed/patch_embed.h"
#include "kernels/token_mean/token_mean.h"

namespace orthofed {

Var patch_embed(Tape& tape, const Var& z, const Var& own, const Var& pos, int64_t batch) {
  const bool needed = tape.needs({&z, &own, &pos});
  const Tensor& in = z.value();
  const int64_t patches = in.rows() / batch, tokens = pos.value().rows(), dim = in.cols(),
                prefix = own.defined() ? own.value().rows() : 0;
  OF_CHECK(in.rows() % batch == 0 && tokens == prefix + patches && pos.value().cols() == dim &&
               pos.value().dense() && (prefix == 0 || own.value().dense()),
           "one position a token");
  const Tensor x = Tensor::empty({batch * tokens, dim}, accum(in.dtype()));
  dispatch(in.dtype(), [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    OF_RUN(queue_of(in), patch_embed_forward,
           PatchEmbedForward<T>{.z = in.data<T>(),
                                .ldz = in.pitch(),
                                .own = prefix > 0 ? own.value().data<R>() : nullptr,
                                .pos = pos.value().data<R>(),
                                .x = x.data<R>(),
                                .ldx = x.pitch(),
                                .batch = batch,
                                .prefix = prefix,
                                .patches = patches,
                                .dim = dim});
  });
  const Var y = tape.output(x, needed);
  if (needed) {
    tape.record({y}, [z, own, pos, y, batch, prefix, patches, dim] {
      const Tensor dx = y.grad();
      const Tensor dz = Tensor::empty(z.shape(), z.value().dtype());
      // A model either trains its tokens (from scratch) or freezes both.
      GradTarget down, dpos;
      if (own.requires_grad()) down = own.grad_target();
      if (pos.requires_grad()) dpos = pos.grad_target();
      OF_CHECK(!own.requires_grad() || !pos.requires_grad() || down.accumulate == dpos.accumulate,
               "own and pos accumulate together");
      dispatch(dz.dtype(), [&]<class T>(Tag<T>) {
        using R = Accum<T>;
        OF_RUN(
            queue_of(dx), patch_embed_backward,
            PatchEmbedBackward<T>{.dx = dx.data<R>(),
                                  .lddx = dx.pitch(),
                                  .dz = z.requires_grad() ? dz.data<T>() : nullptr,
                                  .lddz = dz.pitch(),
                                  .down = down.buffer.defined() ? down.buffer.data<R>() : nullptr,
                                  .dpos = dpos.buffer.defined() ? dpos.buffer.data<R>() : nullptr,
                                  .accumulate = down.accumulate || dpos.accumulate,
                                  .batch = batch,
                                  .prefix = prefix,
                                  .patches = patches,
                                  .dim = dim});
      });
      if (z.requires_grad()) z.give_grad(dz);
    });
  }
  return y;
}

Var select_token(Tape& tape, const Var& x, int64_t batch, int64_t index) {
  const bool needed = tape.needs({&x});
  const Tensor& in = x.value();
  const int64_t tokens = in.rows() / batch;
  OF_CHECK(in.rows() % batch == 0 && 0 <= index && index < tokens, "token out of range");
  const Tensor first = in.row_range(index, in.rows());
  const Tensor view = Tensor::view(std::make_shared<Tensor>(in), first.raw(), {batch, in.cols()},
                                   in.dtype(), tokens * in.pitch(), in.device());
  const Var y = tape.output(view, needed);
  if (needed) {
    tape.record({y}, [x, y, batch, tokens, index] {
      const Tensor dx = Tensor::zeros(x.shape(), x.value().dtype());
      Tensor::view(nullptr, dx.row_range(index, dx.rows()).raw(), {batch, dx.cols()}, dx.dtype(),
                   tokens * dx.pitch(), dx.device())
          .copy_from(y.grad());
      x.give_grad(dx);
    });
  }
  return y;
}

Var mean_tokens(Tape& tape, const Var& x, int64_t batch, int64_t from) {
  const bool needed = tape.needs({&x});
  const Tensor& in = x.value();
  const int64_t tokens = in.rows() / batch, dim = in.cols();
  OF_CHECK(in.rows() % batch == 0 && 0 <= from && from < tokens, "token out of range");
  const TokenMeanShape shape{batch, tokens, from, dim};
  const Tensor mean = Tensor::empty({batch, dim}, in.dtype());
  dispatch_accum(in.dtype(), [&]<class R>(Tag<R>) {
    OF_RUN(queue_of(in), token_mean_forward,
           TokenMeanForward<R>{.x = in.data<R>(),
                               .ldx = in.pitch(),
                               .y = mean.data<R>(),
                               .ldy = mean.pitch(),
                               .shape = shape});
  });
  const Var y = tape.output(mean, needed);
  if (needed) {
    tape.record({y}, [x, y, shape] {
      const Tensor dy = y.grad();
      const Tensor dx = Tensor::empty(x.shape(), x.value().dtype());
      dispatch_accum(dx.dtype(), [&]<class R>(Tag<R>) {
        OF_RUN(queue_of(dy), token_mean_backward,
               TokenMeanBackward<R>{.dy = dy.data<R>(),
                                    .lddy = dy.pitch(),
                                    .dx = dx.data<R>(),
                                    .lddx = dx.pitch(),
                                    .shape = shape});
      });
      x.give_grad(dx);
    });
  }
  return y;
}

Var side_by_side(Tape& tape, const Var& a, const Var& b) {
  const bool needed = tape.needs({&a, &b});
  const int64_t n = a.value().cols(), all = n + b.value().cols();
  const Tensor both = Tensor::empty({a.value().rows(), all}, a.value().dtype());
  both.columns(0, n).copy_from(a.value());
  both.columns(n, all).copy_from(b.value());
  const Var y = tape.output(both, needed);
  if (needed) {
    tape.record({y}, [a, b, y, n, all] {
      if (a.requires_grad()) a.give_grad(y.grad().columns(0, n).clone());
      if (b.requires_grad()) b.give_grad(y.grad().columns(n, all).clone());
    });
  }
  return y;
}

}  // namespace orthofed
