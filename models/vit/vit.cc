#include "models/vit/vit.h"

#include <fmt/core.h>

#include <cmath>
#include <utility>

#include "engine/ops/attention.h"
#include "engine/ops/cast.h"
#include "engine/ops/layer_norm.h"
#include "engine/ops/tokens.h"
#include "kernels/core/philox.h"

namespace orthofed {

Vit Vit::create(const VitConfig& c, DType compute, uint64_t seed) {
  OF_CHECK(c.dim % c.heads == 0 && c.image_size % c.patch == 0, "a consistent geometry");
  TensorMap t;
  // Truncated at two standard deviations; biases, the class token's excepted, start at zero.
  auto draw = [&](const std::string& name, const Shape& shape) {
    const Philox rng = PhiloxKey(seed).with("vit").with(name);
    std::vector<float> v(size_t(shape.size()));
    uint64_t counter = 0;
    for (float& x : v) {
      double z = normal(rng, counter++);
      while (std::abs(z) > 2) z = normal(rng, counter++);
      x = float(0.02 * z);
    }
    t[name] = Tensor::of(v, shape);
  };
  auto fill = [&](const std::string& name, int64_t n, double value) {
    t[name] = Tensor::full({n}, DType::f32, value);
  };
  auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    draw(name + ".weight", {out, in});
    fill(name + ".bias", out, 0);
  };
  draw("patch_embed.proj.weight", {c.dim, 3, c.patch, c.patch});
  fill("patch_embed.proj.bias", c.dim, 0);
  if (c.class_token) draw("cls_token", {1, 1, c.dim});
  draw("pos_embed", {1, c.tokens(), c.dim});
  for (int64_t i = 0; i < c.depth; ++i) {
    const std::string b = fmt::format("blocks.{}.", i);
    fill(b + "norm1.weight", c.dim, 1);
    fill(b + "norm1.bias", c.dim, 0);
    linear(b + "attn.qkv", 3 * c.dim, c.dim);
    linear(b + "attn.proj", c.dim, c.dim);
    fill(b + "norm2.weight", c.dim, 1);
    fill(b + "norm2.bias", c.dim, 0);
    linear(b + "mlp.fc1", c.mlp_dim, c.dim);
    linear(b + "mlp.fc2", c.dim, c.mlp_dim);
  }
  fill("norm.weight", c.dim, 1);
  fill("norm.bias", c.dim, 0);
  if (c.classes > 0) linear("head", c.classes, c.dim);
  return from_tensors(c, t, compute, true);
}

BlockOptions Vit::block_options() const {
  return {.heads = config.heads,
          .eps = config.eps,
          .gelu = config.gelu,
          .compute = compute,
          .gated = config.gated_mlp,
          .rotation = &rotation};
}

Var Vit::features(Tape& tape, const Tensor& patches, int64_t batch, SliceObserver* observer) const {
  OF_CHECK(patches.rows() == batch * config.patches() && patches.cols() == patch_embed.in(),
           fmt::format("patches {} for {} images of {} patches", patches.shape().str(), batch,
                       config.patches()));
  const BlockOptions options = block_options();
  const Var z = linear(tape, patch_embed, Var(patches));                 // [B P, D]
  Var x = orthofed::patch_embed(tape, z, own_tokens, pos_embed, batch);  // [B N, D]
  if (config.pre_norm)
    x = layer_norm(tape, x, norm_pre_weight, norm_pre_bias, config.eps, accum(compute));
  for (size_t i = 0; i < blocks.size(); ++i) {
    x = attention_half(tape, blocks[i], x, batch, options, observer);
    // Nothing reads the last block's other tokens, unless an observer looks at them.
    if (i + 1 == blocks.size() && config.pool == Pool::token && observer == nullptr)
      x = select_token(tape, x, batch, 0);  // [B, D]
    x = mlp_half(tape, blocks[i], x, options, observer);
  }
  if (config.pool == Pool::token && observer != nullptr) x = select_token(tape, x, batch, 0);
  if (config.norm_after_pool) x = pool(tape, x, batch);
  x = layer_norm(tape, x, norm_weight, norm_bias, config.eps, accum(compute));
  return config.norm_after_pool ? x : pool(tape, x, batch);
}

// x [B N, D], or [B, D] where the class token was already taken -> [B, feature_dim]
Var Vit::pool(Tape& tape, const Var& x, int64_t batch) const {
  switch (config.pool) {
    case Pool::token:
      return x;
    case Pool::average:
      return mean_tokens(tape, x, batch, config.prefix());
    case Pool::token_and_average:
      return side_by_side(tape, select_token(tape, x, batch, 0),
                          mean_tokens(tape, x, batch, config.prefix()));
    case Pool::two_tokens:
      return side_by_side(tape, select_token(tape, x, batch, 0), select_token(tape, x, batch, 1));
    case Pool::attention:
      break;
  }
  const Block& p = attention_pool;
  const Var h = cast(tape, x, compute);                                        // [B N, D]
  const Var a = attention(tape, linear(tape, p.qkv, h), batch, config.heads);  // [B N, D]
  const Var y = linear(tape, p.proj, select_token(tape, a, batch, 0));         // [B, D]
  return mlp_half(tape, p, cast(tape, y, accum(compute)), block_options(), nullptr);
}

Var Vit::logits(Tape& tape, const Var& features) const {
  OF_CHECK(has_head(), "these weights have no head");
  return linear(tape, head, features);
}

Var Vit::embedding(Tape& tape, const Var& features) const {
  OF_CHECK(projection.weight.defined(), "these weights have no projection");
  return linear(tape, projection, features);
}

std::vector<Var> Vit::parameters() const {
  std::vector<Var> all;
  auto add = [&](const Var& v) {
    if (v.defined()) all.push_back(v);
  };
  auto add_linear = [&](const Linear& l) {
    add(l.weight);
    add(l.bias);
  };
  add_linear(patch_embed);
  add(own_tokens);
  add(pos_embed);
  add(norm_pre_weight);
  add(norm_pre_bias);
  for (const Block& b : blocks) {
    add(b.norm1_weight);
    add(b.norm1_bias);
    add_linear(b.qkv);
    for (const Var& v : {b.q_norm_weight, b.q_norm_bias, b.k_norm_weight, b.k_norm_bias}) add(v);
    add_linear(b.proj);
    add(b.ls1);
    add(b.norm2_weight);
    add(b.norm2_bias);
    add_linear(b.fc1);
    add_linear(b.fc2);
    add(b.ls2);
  }
  add(norm_weight);
  add(norm_bias);
  if (config.pool == Pool::attention) {
    const Block& p = attention_pool;
    for (const Linear* l : {&p.qkv, &p.proj, &p.fc1, &p.fc2}) add_linear(*l);
    add(p.norm2_weight);
    add(p.norm2_bias);
  }
  if (has_head()) add_linear(head);
  if (projection.weight.defined()) add_linear(projection);
  return all;
}

void Vit::quantize() {
  if (compute != DType::bf16)
    throw UserError(
        fmt::format("frozen_precision fp8 goes with activations in bf16, and precision is {}: set "
                    "precision = \"bf16\"",
                    name_of(compute)));
  const OnDevice scope(device());
  if (!multiplies_fp8())
    throw UserError(
        fmt::format("frozen_precision fp8 needs compute capability 8.9 (Ada, Hopper) or later, "
                    "which this {} device has not: set train.frozen_precision = \"same\"",
                    name_of(device())));
  for (Block& block : blocks)
    for (Linear* layer : {&block.qkv, &block.proj, &block.fc1, &block.fc2}) layer->quantize();
}

TensorMap Vit::tensors() const {
  TensorMap t;
  for (const Var& v : parameters()) {
    Tensor value = v.value().on(Device::cpu).contiguous();
    if (v.name() == "patch_embed.proj.weight")
      value = value.reshape({config.dim, 3, config.patch, config.patch});
    if (v.name() == "cls_token") value = value.reshape({1, 1, config.dim});
    if (v.name() == "pos_embed") value = value.reshape({1, config.tokens(), config.dim});
    t[v.name()] = value;
  }
  return t;
}

Linear* Vit::find(const std::string& name) {
  for (size_t i = 0; i < blocks.size(); ++i) {
    const std::string b = fmt::format("blocks.{}.", i);
    if (name == b + "attn.qkv") return &blocks[i].qkv;
    if (name == b + "attn.proj") return &blocks[i].proj;
    if (name == b + "mlp.fc1") return &blocks[i].fc1;
    if (name == b + "mlp.fc2") return &blocks[i].fc2;
  }
  return nullptr;
}

}  // namespace orthofed
