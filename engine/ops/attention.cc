#include "engine/ops/attention.h"

#include <cmath>

#include "kernels/attention/attention.h"

namespace orthofed {
namespace {

AttentionShape shape_of(const Tensor& qkv, const Tensor& out, int64_t batch, int64_t heads) {
  OF_CHECK(qkv.cols() % (3 * heads) == 0, "q, k and v share the columns equally among the heads");
  OF_CHECK(qkv.rows() % batch == 0, "every image has as many tokens");
  return {.batch = batch,
          .tokens = qkv.rows() / batch,
          .heads = heads,
          .head_dim = qkv.cols() / 3 / heads,
          .ld_qkv = qkv.pitch(),
          .ld_out = out.pitch()};
}

}  // namespace

Tensor attention_forward(const Tensor& qkv, int64_t batch, int64_t heads, Tensor* lse) {
  const Tensor out = Tensor::empty({qkv.rows(), qkv.cols() / 3}, qkv.dtype());
  const AttentionShape shape = shape_of(qkv, out, batch, heads);
  if (lse != nullptr) *lse = Tensor::empty({batch * heads * shape.tokens}, accum(qkv.dtype()));
  dispatch(qkv.dtype(), [&]<class T>(Tag<T>) {
    OF_RUN(queue_of(qkv), attention_forward,
           AttentionForward<T>{.qkv = qkv.data<T>(),
                               .out = out.data<T>(),
                               .lse = lse != nullptr ? lse->data<Accum<T>>() : nullptr,
                               .shape = shape,
                               .scale = 1 / std::sqrt(double(shape.head_dim))});
  });
  return out;
}

Tensor attention_backward(const Tensor& qkv, const Tensor& out, const Tensor& dout,
                          const Tensor& lse, int64_t batch, int64_t heads) {
  const Tensor dqkv = Tensor::empty({qkv.rows(), qkv.cols()}, qkv.dtype());
  const AttentionShape shape = shape_of(qkv, out, batch, heads);
  OF_CHECK(dout.pitch() == out.pitch() && dqkv.pitch() == qkv.pitch(), "equal pitches");
  dispatch(qkv.dtype(), [&]<class T>(Tag<T>) {
    OF_RUN(queue_of(qkv), attention_backward,
           AttentionBackward<T>{.qkv = qkv.data<T>(),
                                .out = out.data<T>(),
                                .dout = dout.data<T>(),
                                .lse = lse.data<Accum<T>>(),
                                .dqkv = dqkv.data<T>(),
                                .shape = shape,
                                .scale = 1 / std::sqrt(double(shape.head_dim))});
  });
  return dqkv;
}

Var attention(Tape& tape, const Var& qkv, int64_t batch, int64_t heads) {
  const bool needed = tape.needs({&qkv});
  Tensor lse;
  const Var y =
      tape.output(attention_forward(qkv.value(), batch, heads, needed ? &lse : nullptr), needed);
  if (needed) {
    tape.record({y}, [qkv, y, lse, batch, heads] {
      qkv.give_grad(attention_backward(qkv.value(), y.value(), y.grad(), lse, batch, heads));
    });
  }
  return y;
}

}  // namespace orthofed
