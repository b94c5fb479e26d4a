#include "models/vit.h"

#include <fmt/core.h>

#include <cmath>
#include <filesystem>
#include <set>

#include "engine/io/checkpoint.h"
#include "engine/ops/layer_norm.h"
#include "engine/ops/tokens.h"
#include "kernels/core/philox.h"

namespace orthofed {
namespace {

// Takes tensors out of a file by name, and knows what was never asked for.
class Reader {
 public:
  Reader(const TensorMap& tensors, DType dtype, bool trainable)
      : tensors_(tensors), dtype_(dtype), trainable_(trainable) {}

  bool has(const std::string& name) const { return tensors_.contains(name); }
  const Shape& shape(const std::string& name) const { return at(name).shape(); }

  // The tensor, in this file's layout or any with the same number of elements in the same order.
  Var take(const std::string& name, const Shape& wanted) {
    const Tensor& t = at(name);
    if (t.dtype() != DType::f32 && t.dtype() != DType::f64 && t.dtype() != DType::bf16 &&
        t.dtype() != DType::f16)
      throw UserError(fmt::format("weights: '{}' is {}, a floating type is expected", name,
                                  name_of(t.dtype())));
    if (t.size() != wanted.size())
      throw UserError(fmt::format("weights: '{}' has shape {}, expected {} (or as many elements)",
                                  name, t.shape().str(), wanted.str()));
    if (!t.all_finite())
      throw UserError(
          fmt::format("weights: '{}' holds NaN or infinity; fetch the file again", name));
    taken_.insert(name);
    Tensor own = Tensor::empty(wanted, dtype_);
    own.copy_from(t.contiguous().reshape(wanted));
    return Var(own, trainable_, name);
  }
  Var take_if(bool present, const std::string& name, const Shape& wanted) {
    return present ? take(name, wanted) : Var();
  }

  void expect_all_taken() const {
    for (const auto& [name, t] : tensors_)
      if (!taken_.contains(name))
        throw UserError(
            fmt::format("weights: '{}' {} is not part of a plain ViT with timm's names; "
                        "this architecture is not supported",
                        name, t.shape().str()));
  }

 private:
  const Tensor& at(const std::string& name) const {
    const auto it = tensors_.find(name);
    if (it == tensors_.end())
      throw UserError(
          fmt::format("weights: tensor '{}' is missing; a ViT with timm's names is "
                      "expected",
                      name));
    return it->second;
  }

  const TensorMap& tensors_;
  DType dtype_;
  bool trainable_;
  std::set<std::string> taken_;
};

}  // namespace

Vit Vit::from_tensors(const VitConfig& given, const TensorMap& tensors, DType compute,
                      bool trainable) {
  Vit m;
  m.compute = compute;
  VitConfig& c = m.config = given;
  Reader r(tensors, accum(compute), trainable);

  const Shape embed = r.shape("patch_embed.proj.weight");  // [dim, 3, patch, patch]
  if (embed.rank() != 4 || embed[1] != 3 || embed[2] != embed[3])
    throw UserError(
        fmt::format("weights: 'patch_embed.proj.weight' has shape {}, expected "
                    "[dim, 3, patch, patch]",
                    embed.str()));
  c.dim = embed[0];
  c.patch = embed[2];
  c.class_token = r.has("cls_token");
  if (!c.class_token && !c.pool_average)
    throw UserError(
        "weights: 'cls_token' is missing; if this model averages its patches, say "
        "\"pool\": \"avg\" in config.json");
  const Shape pos = r.shape("pos_embed");  // [1, tokens, dim]
  const int64_t patches = pos.rows() - (c.class_token ? 1 : 0);
  const int64_t side = int64_t(std::lround(std::sqrt(double(patches))));
  if (pos.cols() != c.dim || side * side != patches || side == 0)
    throw UserError(fmt::format("weights: 'pos_embed' has shape {}, expected [1, {}n*n, {}]",
                                pos.str(), c.class_token ? "1 + " : "", c.dim));
  c.image_size = side * c.patch;
  c.depth = 0;
  while (r.has(fmt::format("blocks.{}.norm1.weight", c.depth))) ++c.depth;
  if (c.depth == 0) throw UserError("weights: 'blocks.0.norm1.weight' is missing");
  c.mlp_dim = r.shape("blocks.0.mlp.fc1.weight")[0];
  c.layer_scale = r.has("blocks.0.ls1.gamma");
  c.classes = r.has("head.weight") ? r.shape("head.weight")[0] : 0;
  if (c.heads <= 0 || c.dim % c.heads != 0)
    throw UserError(
        fmt::format("config: num_heads = {} does not divide the width {}", c.heads, c.dim));

  const int64_t d = c.dim;
  auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    return Linear(r.take(name + ".weight", {out, in}),
                  r.take_if(r.has(name + ".bias"), name + ".bias", {out}), compute);
  };
  m.patch_embed = linear("patch_embed.proj", d, 3 * c.patch * c.patch);
  m.cls_token = r.take_if(c.class_token, "cls_token", {d});
  m.pos_embed = r.take("pos_embed", {c.tokens(), d});
  for (int64_t i = 0; i < c.depth; ++i) {
    const std::string b = fmt::format("blocks.{}.", i);
    Block block;
    block.norm1_weight = r.take(b + "norm1.weight", {d});
    block.norm1_bias = r.take(b + "norm1.bias", {d});
    block.qkv = linear(b + "attn.qkv", 3 * d, d);
    block.proj = linear(b + "attn.proj", d, d);
    block.ls1 = r.take_if(c.layer_scale, b + "ls1.gamma", {d});
    block.norm2_weight = r.take(b + "norm2.weight", {d});
    block.norm2_bias = r.take(b + "norm2.bias", {d});
    block.fc1 = linear(b + "mlp.fc1", c.mlp_dim, d);
    block.fc2 = linear(b + "mlp.fc2", d, c.mlp_dim);
    block.ls2 = r.take_if(c.layer_scale, b + "ls2.gamma", {d});
    m.blocks.push_back(std::move(block));
  }
  m.norm_weight = r.take("norm.weight", {d});
  m.norm_bias = r.take("norm.bias", {d});
  if (c.classes > 0) {
    // The head reads the features, which are kept in the accumulation type.
    m.head = Linear(r.take("head.weight", {c.classes, d}),
                    r.take_if(r.has("head.bias"), "head.bias", {c.classes}), accum(compute));
  }
  r.expect_all_taken();
  return m;
}

Vit Vit::load(const std::string& weights, const std::string& config, DType compute) {
  const Safetensors file = load_checkpoint(weights);
  std::string path = config;
  if (path.empty()) {
    const std::string main = checkpoint_files(weights).main;
    path = (std::filesystem::path(main).parent_path() / "config.json").string();
    if (!std::filesystem::exists(path))
      throw UserError(
          fmt::format("{}: no config.json beside the weights; name one (model.config, "
                      "--config): the number of heads is not in the tensors",
                      weights));
  }
  const VitConfig geometry = read_vit_config(path);
  try {
    Vit m = from_tensors(geometry, file.tensors, compute, false);
    m.sha256 = sha256_of_checkpoint(weights);
    return m;
  } catch (const UserError& error) {
    throw UserError(fmt::format("{}: {}", weights, error.what()));
  }
}

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

Var Vit::features(Tape& tape, const Tensor& patches, int64_t batch,
                  FeaturesPenalty* penalty) const {
  OF_CHECK(patches.rows() == batch * config.patches() && patches.cols() == patch_embed.in(),
           fmt::format("patches {} for {} images of {} patches", patches.shape().str(), batch,
                       config.patches()));
  const BlockOptions options{config.heads, config.eps, config.gelu, compute};
  const Var z = linear(tape, patch_embed, Var(patches));                // [B P, D]
  Var x = orthofed::patch_embed(tape, z, cls_token, pos_embed, batch);  // [B N, D]
  for (size_t i = 0; i < blocks.size(); ++i) {
    x = attention_half(tape, blocks[i], x, batch, options, penalty);
    // Nothing reads the last block's other tokens, unless the features penalty averages over them.
    if (i + 1 == blocks.size() && !config.pool_average && penalty == nullptr)
      x = select_token(tape, x, batch, 0);  // [B, D]
    x = mlp_half(tape, blocks[i], x, options, penalty);
  }
  if (!config.pool_average && penalty != nullptr) x = select_token(tape, x, batch, 0);
  const Var f = layer_norm(tape, x, norm_weight, norm_bias, config.eps, accum(compute));
  return config.pool_average ? mean_tokens(tape, f, batch, config.class_token ? 1 : 0) : f;
}

Var Vit::logits(Tape& tape, const Var& features) const {
  OF_CHECK(has_head(), "these weights have no head");
  return linear(tape, head, features);
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
  add(cls_token);
  add(pos_embed);
  for (const Block& b : blocks) {
    add(b.norm1_weight);
    add(b.norm1_bias);
    add_linear(b.qkv);
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
  if (has_head()) add_linear(head);
  return all;
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
