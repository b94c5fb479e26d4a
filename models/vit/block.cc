#include "models/vit/block.h"

#include "engine/ops/attention.h"
#include "engine/ops/layer_norm.h"
#include "engine/ops/residual.h"
#include "engine/ops/swiglu.h"

namespace orthofed {
namespace {

// The end of both halves' backward: norm, and the residual gradient that bypassed it, in place.
void through_norm(const Var& x, const Tensor& dh, const Tensor& dy, const LayerNormSaved& saved,
                  const Var& gamma, const Var& beta) {
  const bool need_dx = x.requires_grad();
  layer_norm_backward(dh, saved, gamma, beta, need_dx ? &dy : nullptr, need_dx ? &dy : nullptr);
  if (need_dx) x.give_grad(dy);
}

// LayerNorm over each head's q and k, in place in a packed qkv: the columns of q (part 0) and of k
// (part 1) as rows of one head each. One copy out and one back, each of which converts.
struct QkNormSaved {
  LayerNormSaved q, k;
};

Tensor heads_as_rows(const Tensor& qkv, int64_t part, int64_t heads, DType dtype) {
  const int64_t rows = qkv.rows(), dim = qkv.cols() / 3;
  const Tensor dense = Tensor::empty({rows * dim}, dtype).reshape({rows, dim});  // [B N, D]
  dense.copy_from(qkv.columns(part * dim, (part + 1) * dim));
  return dense.reshape({rows * heads, dim / heads});  // [B N H, d]
}

void put_heads(const Tensor& rows, const Tensor& qkv, int64_t part) {
  const int64_t dim = qkv.cols() / 3;
  qkv.columns(part * dim, (part + 1) * dim).copy_from(rows.contiguous().reshape({qkv.rows(), dim}));
}

void qk_norm_forward(const Block& block, const Tensor& qkv, const BlockOptions& o,
                     QkNormSaved* saved) {
  const auto normalise = [&](int64_t part, const Var& gamma, const Var& beta, LayerNormSaved* s) {
    const Tensor x = heads_as_rows(qkv, part, o.heads, accum(o.compute));
    put_heads(layer_norm_forward(x, gamma, beta, o.eps, o.compute, s), qkv, part);
  };
  normalise(0, block.q_norm_weight, block.q_norm_bias, saved != nullptr ? &saved->q : nullptr);
  normalise(1, block.k_norm_weight, block.k_norm_bias, saved != nullptr ? &saved->k : nullptr);
}

void qk_norm_backward(const Block& block, const Tensor& dqkv, const BlockOptions& o,
                      const QkNormSaved& saved) {
  const auto back = [&](int64_t part, const Var& gamma, const Var& beta, const LayerNormSaved& s) {
    const Tensor dy = heads_as_rows(dqkv, part, o.heads, o.compute);
    const Tensor dx = Tensor::empty(s.x.shape(), s.x.dtype());
    layer_norm_backward(dy, s, gamma, beta, nullptr, &dx);
    put_heads(dx, dqkv, part);
  };
  back(0, block.q_norm_weight, block.q_norm_bias, saved.q);
  back(1, block.k_norm_weight, block.k_norm_bias, saved.k);
}

}  // namespace

Var attention_half(Tape& tape, const Block& block, const Var& x, int64_t batch,
                   const BlockOptions& options, SliceObserver* observer) {
  struct Saved {
    LayerNormSaved norm;
    Linear::Saved qkv, proj;
    QkNormSaved qk_norm;
    Tensor qkv_out, lse, z;  // proj.x is the attention's output
  };
  const bool trains = block.norm1_weight.requires_grad() || block.qkv.trainable() ||
                      block.proj.trainable() || block.ls1.requires_grad();
  const bool needed = tape.recording() && (x.requires_grad() || trains);
  auto saved = std::make_shared<Saved>();
  Saved* s = needed ? saved.get() : nullptr;

  const Tensor h = layer_norm_forward(x.value(), block.norm1_weight, block.norm1_bias, options.eps,
                                      options.compute, s ? &s->norm : nullptr);  // [B N, D]
  const Tensor qkv = block.qkv.forward(h, s ? &s->qkv : nullptr);                // [B N, 3 D]
  if (block.q_norm_weight.defined())
    qk_norm_forward(block, qkv, options, s ? &s->qk_norm : nullptr);
  const bool turned = options.rotation != nullptr && options.rotation->defined();
  if (turned) rope_forward(qkv, *options.rotation, batch, options.heads);
  const Tensor a = attention_forward(qkv, batch, options.heads, s ? &s->lse : nullptr);  // [B N, D]
  const Var y =
      tape.output(block.proj.forward_residual(a, x.value(), block.ls1, s ? &s->proj : nullptr,
                                              s && block.ls1.requires_grad() ? &s->z : nullptr),
                  needed);
  if (!needed) return y;

  s->qkv_out = qkv;
  tape.record({y}, [&block, x, y, saved, batch, options, turned, observer] {
    const Tensor dy = y.take_grad();
    const bool below = x.requires_grad() || block.norm1_weight.requires_grad();
    const bool into_qkv = below || block.qkv.trainable();
    const Tensor dz = residual_backward(dy, saved->z, block.ls1, options.compute);
    const Tensor da = block.proj.backward(dz, saved->proj, into_qkv, observer);
    if (!into_qkv) return;
    const Tensor dqkv =
        attention_backward(saved->qkv_out, saved->proj.x, da, saved->lse, batch, options.heads);
    if (turned) rope_backward(dqkv, *options.rotation, batch, options.heads);
    if (block.q_norm_weight.defined()) qk_norm_backward(block, dqkv, options, saved->qk_norm);
    const Tensor dh = block.qkv.backward(dqkv, saved->qkv, below, observer);
    if (below) through_norm(x, dh, dy, saved->norm, block.norm1_weight, block.norm1_bias);
  });
  return y;
}

Var mlp_half(Tape& tape, const Block& block, const Var& x, const BlockOptions& options,
             SliceObserver* observer) {
  struct Saved {
    LayerNormSaved norm;
    Linear::Saved fc1, fc2;
    Tensor f, z;  // f is the pre-activation
  };
  const bool trains = block.norm2_weight.requires_grad() || block.fc1.trainable() ||
                      block.fc2.trainable() || block.ls2.requires_grad();
  const bool needed = tape.recording() && (x.requires_grad() || trains);
  auto saved = std::make_shared<Saved>();
  Saved* s = needed ? saved.get() : nullptr;

  const Tensor h = layer_norm_forward(x.value(), block.norm2_weight, block.norm2_bias, options.eps,
                                      options.compute, s ? &s->norm : nullptr);  // [M, D]
  Tensor f, g;  // [M, 4 D], f before the activation
  if (options.gated) {
    f = block.fc1.forward(h, s ? &s->fc1 : nullptr);
    g = swiglu_forward(f);
  } else {
    g = block.fc1.forward_gelu(h, options.gelu, s ? &s->fc1 : nullptr, &f);
  }
  const Var y =
      tape.output(block.fc2.forward_residual(g, x.value(), block.ls2, s ? &s->fc2 : nullptr,
                                             s && block.ls2.requires_grad() ? &s->z : nullptr),
                  needed);
  if (!needed) return y;

  s->f = f;
  tape.record({y}, [&block, x, y, saved, options, observer] {
    const Tensor dy = y.take_grad();
    const bool below = x.requires_grad() || block.norm2_weight.requires_grad();
    const bool into_fc1 = below || block.fc1.trainable();
    const Tensor dz = residual_backward(dy, saved->z, block.ls2, options.compute);
    if (!into_fc1) {
      block.fc2.backward(dz, saved->fc2, false, observer);
      return;
    }
    Tensor df;  // [M, 4 D]
    if (options.gated) {
      const Tensor dg = block.fc2.backward(dz, saved->fc2, true, observer);
      df = saved->f;  // in place, whose shape it has
      swiglu_backward(dg, saved->f, df);
    } else {
      df = block.fc2.backward_gelu(dz, saved->fc2, saved->f, options.gelu, observer);
    }
    const Tensor dh = block.fc1.backward(df, saved->fc1, below, observer);
    if (below) through_norm(x, dh, dy, saved->norm, block.norm2_weight, block.norm2_bias);
  });
  return y;
}

}  // namespace orthofed
