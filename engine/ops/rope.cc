#include "engine/ops/rope.h"

#include "kernels/rope/rope.h"

namespace orthofed {
namespace {

RopeShape shape_of(const Tensor& qkv, const Rotation& r, int64_t batch, int64_t heads) {
  const RopeShape s{.batch = batch,
                    .tokens = qkv.rows() / batch,
                    .prefix = r.prefix,
                    .heads = 2 * heads,
                    .head_dim = qkv.cols() / (3 * heads),
                    .ldx = qkv.pitch()};
  OF_CHECK(qkv.rows() % batch == 0 && r.cos.rows() == s.tokens - s.prefix &&
               r.cos.cols() == s.head_dim / 2 && r.cos.dense() && r.sin.dense(),
           "an angle for every pair of every patch");
  return s;
}

}  // namespace

void rope_forward(const Tensor& qkv, const Rotation& r, int64_t batch, int64_t heads) {
  dispatch(qkv.dtype(), [&]<class T>(Tag<T>) {
    OF_RUN(queue_of(qkv), rope_forward,
           Rope<T>{.x = qkv.data<T>(),
                   .cos = r.cos.data<Accum<T>>(),
                   .sin = r.sin.data<Accum<T>>(),
                   .shape = shape_of(qkv, r, batch, heads)});
  });
}

void rope_backward(const Tensor& dqkv, const Rotation& r, int64_t batch, int64_t heads) {
  dispatch(dqkv.dtype(), [&]<class T>(Tag<T>) {
    OF_RUN(queue_of(dqkv), rope_backward,
           Rope<T>{.x = dqkv.data<T>(),
                   .cos = r.cos.data<Accum<T>>(),
                   .sin = r.sin.data<Accum<T>>(),
                   .shape = shape_of(dqkv, r, batch, heads)});
  });
}

Var rope(Tape& tape, const Var& qkv, const Rotation& rotation, int64_t batch, int64_t heads) {
  const bool needed = tape.needs({&qkv});
  const Tensor turned = qkv.value().clone();
  rope_forward(turned, rotation, batch, heads);
  const Var y = tape.output(turned, needed);
  if (needed) {
    tape.record({y}, [qkv, y, rotation, batch, heads] {
      const Tensor d = y.take_grad();
      rope_backward(d, rotation, batch, heads);
      qkv.give_grad(d);
    });
  }
  return y;
}

}  // namespace orthofed
