#include "models/vit/vit.h"

#include <fmt/core.h>

#include <cmath>
#include <filesystem>
#include <utility>

#include "engine/io/checkpoint.h"
#include "engine/ops/attention.h"
#include "engine/ops/cast.h"
#include "engine/ops/layer_norm.h"
#include "engine/ops/tokens.h"
#include "kernels/core/philox.h"
#include "models/vit/position_embedding.h"

namespace orthofed {
namespace {

// Makes our tensors from those of the file.
class Reader {
 public:
  Reader(const Architecture& architecture, const TensorMap& tensors, DType dtype, bool trainable)
      : architecture_(architecture), tensors_(tensors), dtype_(dtype), trainable_(trainable) {}

  bool has(const std::string& name) const { return architecture_.sources.contains(name); }

  // The file's tensors one below the other, in any layout with as many elements in the same order.
  Tensor tensor(const std::string& name, const Shape& wanted) const {
    const Tensor t = Tensor::empty(wanted, dtype_);
    const std::vector<Source>& sources = architecture_.sources.at(name);
    if (sources.size() == 1) {
      t.copy_from(checked(sources[0].tensor).contiguous().reshape(wanted));
      return t;
    }
    int64_t rows = 0;
    for (const Source& s : sources) rows += s.rows;
    const Tensor stacked = t.reshape({rows, wanted.size() / rows});
    int64_t begin = 0;
    for (const Source& s : sources) {
      const Tensor part = stacked.row_range(begin, begin + s.rows);
      begin += s.rows;
      if (s.tensor.empty())
        part.fill(0);
      else
        part.copy_from(checked(s.tensor).contiguous().reshape(part.shape()));
    }
    return t;
  }
  Var take(const std::string& name, const Shape& wanted) const {
    return Var(tensor(name, wanted), trainable_, name);
  }
  Var take_if(bool present, const std::string& name, const Shape& wanted) const {
    return present ? take(name, wanted) : Var();
  }
  // All elements on the host, in order.
  std::vector<double> values(const std::string& name) const {
    const Tensor& t = checked(architecture_.sources.at(name).front().tensor);
    return t.to_vector();
  }

 private:
  const Tensor& checked(const std::string& name) const {
    const Tensor& t = tensors_.at(name);
    if (t.dtype() != DType::f32 && t.dtype() != DType::f64 && t.dtype() != DType::bf16 &&
        t.dtype() != DType::f16)
      throw UserError(
          fmt::format("tensor '{}' is {}, a floating type is expected", name, name_of(t.dtype())));
    if (!t.all_finite())
      throw UserError(fmt::format("tensor '{}' holds NaN or infinity; fetch the file again", name));
    return t;
  }

  const Architecture& architecture_;
  const TensorMap& tensors_;
  DType dtype_;
  bool trainable_;
};

// Class token, distillation token, registers, in this order. [prefix, dim]
std::vector<double> own_tokens_of(const Reader& r) {
  std::vector<double> all;
  for (const char* name : {"cls_token", "dist_token", "reg_token"})
    if (r.has(name)) {
      const std::vector<double> v = r.values(name);
      all.insert(all.end(), v.begin(), v.end());
    }
  return all;
}

// The positions of all tokens at the model's image size, zero for tokens without one. [tokens, dim]
std::vector<double> positions_of(const Reader& r, const VitConfig& c) {
  std::vector<double> all(size_t(c.tokens() * c.dim));
  if (c.positions == PositionRule::rotary) return all;
  const std::vector<double> file = r.values("pos_embed");
  const auto own = file.size() - size_t(c.grid * c.grid * c.dim);  // of the prefix, which leads
  const std::vector<double> patches = resample_positions({file.begin() + int64_t(own), file.end()},
                                                         c.grid, c.side(), c.dim, c.positions);
  std::copy_n(file.begin(), own, all.begin());
  std::copy(patches.begin(), patches.end(), all.end() - int64_t(patches.size()));
  return all;
}

// W [q; k; v] and b with the learned query put through the rows of q: W [0; k; v], b [q latent + b;
// ..]
Linear pooling_query(const Reader& r, int64_t d, DType compute) {
  const std::string name = "attn_pool.qkv.";
  std::vector<double> w = r.tensor(name + "weight", {3 * d, d}).to_vector(), b(size_t(3 * d));
  if (r.has(name + "bias")) b = r.tensor(name + "bias", {3 * d}).to_vector();
  const std::vector<double> latent = r.values("attn_pool.latent");
  for (int64_t i = 0; i < d; ++i)
    for (int64_t j = 0; j < d; ++j)
      b[size_t(i)] += std::exchange(w[size_t(i * d + j)], 0.0) * latent[size_t(j)];
  return Linear(Var(Tensor::of(w, {3 * d, d}).to(accum(compute))),
                Var(Tensor::of(b, {3 * d}).to(accum(compute))), compute);
}

// The mean of the class token's and the distillation token's logits, for features side by side.
Linear distilled_head(const Reader& r, int64_t classes, int64_t d, DType dtype) {
  std::vector<double> w(size_t(classes * 2 * d)), b(static_cast<size_t>(classes));
  int64_t begin = 0;
  for (const std::string name : {"head", "head_dist"}) {
    const std::vector<double> part = r.values(name + ".weight");
    for (int64_t i = 0; i < classes; ++i)
      for (int64_t j = 0; j < d; ++j)
        w[size_t(i * 2 * d + begin + j)] = part[size_t(i * d + j)] / 2;
    begin += d;
    if (!r.has(name + ".bias")) continue;
    const std::vector<double> bias = r.values(name + ".bias");
    for (int64_t i = 0; i < classes; ++i) b[size_t(i)] += bias[size_t(i)] / 2;
  }
  return Linear(Var(Tensor::of(w, {classes, 2 * d}).to(dtype)),
                Var(Tensor::of(b, {classes}).to(dtype)), dtype);
}

Linear transposed(const Tensor& t, int64_t rows, int64_t cols, DType dtype) {
  const std::vector<double> from = t.to_vector();  // [cols, rows]
  std::vector<double> to(from.size());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) to[size_t(i * cols + j)] = from[size_t(j * rows + i)];
  return Linear(Var(Tensor::of(to, {rows, cols}).to(dtype)), Var(), dtype);
}

}  // namespace

Vit Vit::from_tensors(const Architecture& architecture, const TensorMap& tensors, DType compute,
                      bool trainable, int64_t image_size) {
  Vit m;
  m.compute = compute;
  m.unused = architecture.unused;
  VitConfig& c = m.config = architecture.config;
  if (image_size > 0) {
    if (image_size % c.patch != 0)
      throw UserError(
          fmt::format("image_size {} is no multiple of the patch, {} pixels", image_size, c.patch));
    c.image_size = image_size;
  }
  const DType sums = accum(compute);
  const Reader r(architecture, tensors, sums, trainable);
  OF_CHECK(!trainable || (c.prefix() == (c.class_token ? 1 : 0) && c.grid == c.side()),
           "only a plain ViT at its own image size trains its tokens");

  const int64_t d = c.dim;
  auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    return Linear(r.take(name + ".weight", {out, in}),
                  r.take_if(r.has(name + ".bias"), name + ".bias", {out}), compute);
  };
  m.patch_embed = linear("patch_embed.proj", d, 3 * c.patch * c.patch);
  const auto fixed = [&](const std::vector<double>& values, int64_t rows, const std::string& name) {
    return Var(Tensor::of(values, {rows, d}).to(sums).contiguous(), trainable, name);
  };
  if (c.prefix() > 0) m.own_tokens = fixed(own_tokens_of(r), c.prefix(), "cls_token");
  m.pos_embed = fixed(positions_of(r, c), c.tokens(), "pos_embed");
  if (c.positions == PositionRule::rotary) {
    std::vector<double> cos = rotary_angles(c.side(), d / c.heads, c.rope_theta), sin = cos;
    for (double& a : cos) a = std::cos(a);
    for (double& a : sin) a = std::sin(a);
    const Shape shape{c.patches(), d / c.heads / 2};
    m.rotation = {Tensor::of(cos, shape).to(sums).contiguous(),
                  Tensor::of(sin, shape).to(sums).contiguous(), c.prefix()};
  }
  m.norm_pre_weight = r.take_if(c.pre_norm, "norm_pre.weight", {d});
  m.norm_pre_bias = r.take_if(c.pre_norm, "norm_pre.bias", {d});
  for (int64_t i = 0; i < c.depth; ++i) {
    const std::string b = fmt::format("blocks.{}.", i);
    const Shape head{d / c.heads};
    Block block;
    block.norm1_weight = r.take(b + "norm1.weight", {d});
    block.norm1_bias = r.take(b + "norm1.bias", {d});
    block.qkv = linear(b + "attn.qkv", 3 * d, d);
    block.q_norm_weight = r.take_if(c.qk_norm, b + "attn.q_norm.weight", head);
    block.q_norm_bias = r.take_if(c.qk_norm, b + "attn.q_norm.bias", head);
    block.k_norm_weight = r.take_if(c.qk_norm, b + "attn.k_norm.weight", head);
    block.k_norm_bias = r.take_if(c.qk_norm, b + "attn.k_norm.bias", head);
    block.proj = linear(b + "attn.proj", d, d);
    block.ls1 = r.take_if(c.layer_scale, b + "ls1.gamma", {d});
    block.norm2_weight = r.take(b + "norm2.weight", {d});
    block.norm2_bias = r.take(b + "norm2.bias", {d});
    block.fc1 = linear(b + "mlp.fc1", c.gated_mlp ? 2 * c.mlp_dim : c.mlp_dim, d);
    block.fc2 = linear(b + "mlp.fc2", d, c.mlp_dim);
    block.ls2 = r.take_if(c.layer_scale, b + "ls2.gamma", {d});
    m.blocks.push_back(std::move(block));
  }
  const std::string norm = c.norm_after_pool ? "fc_norm" : "norm";
  m.norm_weight = r.take(norm + ".weight", {d});
  m.norm_bias = r.take(norm + ".bias", {d});
  if (c.pool == Pool::attention) {
    const std::string p = "attn_pool.";
    Block& pool = m.attention_pool;
    const int64_t hidden = r.values(p + "mlp.fc1.weight").size() / size_t(d);
    pool.qkv = pooling_query(r, d, compute);
    pool.proj = linear(p + "proj", d, d);
    pool.norm2_weight = r.take(p + "norm.weight", {d});
    pool.norm2_bias = r.take(p + "norm.bias", {d});
    pool.fc1 = linear(p + "mlp.fc1", hidden, d);
    pool.fc2 = linear(p + "mlp.fc2", d, hidden);
  }
  // What reads the features computes in their type, the accumulation type.
  if (c.classes > 0 && c.pool == Pool::two_tokens) {
    m.head = distilled_head(r, c.classes, d, sums);
  } else if (c.classes > 0) {
    m.head = Linear(r.take("head.weight", {c.classes, c.feature_dim()}),
                    r.take_if(r.has("head.bias"), "head.bias", {c.classes}), sums);
  }
  if (r.has("projection.weight"))
    m.projection = Linear(r.take("projection.weight", {c.projection, d}), Var(), sums);
  if (r.has("projection.transposed"))
    m.projection =
        transposed(r.tensor("projection.transposed", {d, c.projection}), c.projection, d, sums);
  return m;
}

Vit Vit::from_tensors(const VitConfig& config, const TensorMap& tensors, DType compute,
                      bool trainable) {
  ConfigFiles files;
  files.config = config.json();
  return from_tensors(recognise(shapes_of(tensors), files), tensors, compute, trainable);
}

Vit Vit::load(const std::string& weights, const std::string& config, DType compute,
              int64_t image_size) {
  const Safetensors file = load_checkpoint(weights);
  const ConfigFiles files = ConfigFiles::beside(checkpoint_files(weights).main, config);
  try {
    Vit m = from_tensors(recognise(shapes_of(file.tensors), files), file.tensors, compute, false,
                         image_size);
    m.sha256 = sha256_of_checkpoint(weights);
    if (!m.has_head()) m.take_head_beside(checkpoint_files(weights).main);
    return m;
  } catch (const UserError& error) {
    throw UserError(fmt::format("{}: {}", weights, error.what()));
  }
}

void Vit::take_head_beside(const std::string& main) {
  const std::string path = (std::filesystem::path(main).parent_path() / kHeadFile).string();
  if (!std::filesystem::exists(path)) return;
  const TensorMap tensors = load_safetensors(path).tensors;
  const auto weight = tensors.find("weight"), bias = tensors.find("bias");
  if (weight == tensors.end() || bias == tensors.end() || weight->second.rank() != 2 ||
      weight->second.cols() != config.feature_dim() ||
      !(bias->second.shape() == Shape({weight->second.rows()})))
    throw UserError(
        fmt::format("{}: a classifier of these weights has 'weight' [classes, {}] and "
                    "'bias' [classes]",
                    path, config.feature_dim()));
  const DType sums = accum(compute);
  const auto taken = [&](const Tensor& from) {
    const Tensor t = Tensor::empty(from.shape(), sums);
    t.copy_from(from);
    return Var(t);
  };
  head = Linear(taken(weight->second), taken(bias->second), sums);
  config.classes = weight->second.rows();
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

BlockOptions Vit::block_options() const {
  return {.heads = config.heads,
          .eps = config.eps,
          .gelu = config.gelu,
          .compute = compute,
          .gated = config.gated_mlp,
          .rotation = &rotation};
}

Var Vit::features(Tape& tape, const Tensor& patches, int64_t batch,
                  FeaturesPenalty* penalty) const {
  OF_CHECK(patches.rows() == batch * config.patches() && patches.cols() == patch_embed.in(),
           fmt::format("patches {} for {} images of {} patches", patches.shape().str(), batch,
                       config.patches()));
  const BlockOptions options = block_options();
  const Var z = linear(tape, patch_embed, Var(patches));                 // [B P, D]
  Var x = orthofed::patch_embed(tape, z, own_tokens, pos_embed, batch);  // [B N, D]
  if (config.pre_norm)
    x = layer_norm(tape, x, norm_pre_weight, norm_pre_bias, config.eps, accum(compute));
  for (size_t i = 0; i < blocks.size(); ++i) {
    x = attention_half(tape, blocks[i], x, batch, options, penalty);
    // Nothing reads the last block's other tokens, unless the features penalty averages over them.
    if (i + 1 == blocks.size() && config.pool == Pool::token && penalty == nullptr)
      x = select_token(tape, x, batch, 0);  // [B, D]
    x = mlp_half(tape, blocks[i], x, options, penalty);
  }
  if (config.pool == Pool::token && penalty != nullptr) x = select_token(tape, x, batch, 0);
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
