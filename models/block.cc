#include "models/block.h"

#include "engine/ops/attention.h"
#include "engine/ops/layer_norm.h"
#include "engine/ops/residual.h"

namespace orthofed {
namespace {

// The end of both halves' backward: norm, and the residual gradient that bypassed it, in place.
void through_norm(const Var& x, const Tensor& dh, const Tensor& dy, const LayerNormSaved& saved,
                  const Var& gamma, const Var& beta) {
  const bool need_dx = x.requires_grad();
  layer_norm_backward(dh, saved, gamma, beta, need_dx ? &dy : nullptr, need_dx ? &dy : nullptr);
  if (need_dx) x.give_grad(dy);
}

}  // namespace

Var attention_half(Tape& tape, const Block& block, const Var& x, int64_t batch,
                   const BlockOptions& options, FeaturesPenalty* features) {
  struct Saved {
    LayerNormSaved norm;
    Linear::Saved qkv, proj;
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
  const Tensor a = attention_forward(qkv, batch, options.heads, s ? &s->lse : nullptr);  // [B N, D]
  const Tensor z = block.proj.forward(a, s ? &s->proj : nullptr);                        // [B N, D]
  const Var y = tape.output(residual_forward(x.value(), z, block.ls1), needed);
  if (!needed) return y;

  s->qkv_out = qkv;
  if (block.ls1.requires_grad()) s->z = z;
  tape.record({y}, [&block, x, y, saved, batch, options, features] {
    const Tensor dy = y.take_grad();
    const bool below = x.requires_grad() || block.norm1_weight.requires_grad();
    const bool into_qkv = below || block.qkv.trainable();
    const Tensor dz = residual_backward(dy, saved->z, block.ls1, options.compute);
    const Tensor da = block.proj.backward(dz, saved->proj, into_qkv, features);
    if (!into_qkv) return;
    const Tensor dqkv =
        attention_backward(saved->qkv_out, saved->proj.x, da, saved->lse, batch, options.heads);
    const Tensor dh = block.qkv.backward(dqkv, saved->qkv, below, features);
    if (below) through_norm(x, dh, dy, saved->norm, block.norm1_weight, block.norm1_bias);
  });
  return y;
}

Var mlp_half(Tape& tape, const Block& block, const Var& x, const BlockOptions& options,
             FeaturesPenalty* features) {
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
  const Tensor f = block.fc1.forward(h, s ? &s->fc1 : nullptr);                  // [M, 4 D]
  const Tensor g = gelu_forward(f, options.gelu);                                // [M, 4 D]
  const Tensor z = block.fc2.forward(g, s ? &s->fc2 : nullptr);                  // [M, D]
  const Var y = tape.output(residual_forward(x.value(), z, block.ls2), needed);
  if (!needed) return y;

  s->f = f;
  if (block.ls2.requires_grad()) s->z = z;
  tape.record({y}, [&block, x, y, saved, options, features] {
    const Tensor dy = y.take_grad();
    const bool below = x.requires_grad() || block.norm2_weight.requires_grad();
    const bool into_fc1 = below || block.fc1.trainable();
    const Tensor dz = residual_backward(dy, saved->z, block.ls2, options.compute);
    const Tensor dg = block.fc2.backward(dz, saved->fc2, into_fc1, features);
    if (!into_fc1) return;
    gelu_backward(dg, saved->f, dg, options.gelu);  // in place: dg becomes df
    const Tensor dh = block.fc1.backward(dg, saved->fc1, below, features);
    if (below) through_norm(x, dh, dy, saved->norm, block.norm2_weight, block.norm2_bias);
  });
  return y;
}

}  // namespace orthofed
