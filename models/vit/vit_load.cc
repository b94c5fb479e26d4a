// How a Vit comes from a file: vit.h's load and from_tensors.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "engine/io/checkpoint.h"
#include "models/vit/position_embedding.h"
#include "models/vit/vit.h"

namespace orthofed {
namespace {

// Makes our tensors, in accum(compute), from those of the file.
class Reader {
 public:
  Reader(const Architecture& architecture, const TensorMap& tensors, DType compute, bool trainable)
      : architecture_(architecture), tensors_(tensors), compute_(compute), trainable_(trainable) {}

  bool has(const std::string& name) const { return architecture_.sources.contains(name); }

  // The file's tensors, one below the other, in any layout that has as many elements in the
  // same order.
  Tensor tensor(const std::string& name, const Shape& wanted) const {
    const Tensor t = Tensor::empty(wanted, accum(compute_));
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
  Linear linear(const std::string& name, int64_t out, int64_t in) const {
    return Linear(take(name + ".weight", {out, in}),
                  take_if(has(name + ".bias"), name + ".bias", {out}), compute_);
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
  DType compute_;
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

Rotation rotation_of(const VitConfig& c, DType dtype) {
  std::vector<double> cos = rotary_angles(c.side(), c.dim / c.heads, c.rope_theta), sin = cos;
  for (double& a : cos) a = std::cos(a);
  for (double& a : sin) a = std::sin(a);
  const Shape shape{c.patches(), c.dim / c.heads / 2};
  return {Tensor::of(cos, shape).to(dtype).contiguous(),
          Tensor::of(sin, shape).to(dtype).contiguous(), c.prefix()};
}

Block block_of(const Reader& r, const VitConfig& c, int64_t i) {
  const int64_t d = c.dim;
  const std::string b = fmt::format("blocks.{}.", i);
  const Shape head{d / c.heads};
  Block block;
  block.norm1_weight = r.take(b + "norm1.weight", {d});
  block.norm1_bias = r.take(b + "norm1.bias", {d});
  block.qkv = r.linear(b + "attn.qkv", 3 * d, d);
  block.q_norm_weight = r.take_if(c.qk_norm, b + "attn.q_norm.weight", head);
  block.q_norm_bias = r.take_if(c.qk_norm, b + "attn.q_norm.bias", head);
  block.k_norm_weight = r.take_if(c.qk_norm, b + "attn.k_norm.weight", head);
  block.k_norm_bias = r.take_if(c.qk_norm, b + "attn.k_norm.bias", head);
  block.proj = r.linear(b + "attn.proj", d, d);
  block.ls1 = r.take_if(c.layer_scale, b + "ls1.gamma", {d});
  block.norm2_weight = r.take(b + "norm2.weight", {d});
  block.norm2_bias = r.take(b + "norm2.bias", {d});
  block.fc1 = r.linear(b + "mlp.fc1", c.gated_mlp ? 2 * c.mlp_dim : c.mlp_dim, d);
  block.fc2 = r.linear(b + "mlp.fc2", d, c.mlp_dim);
  block.ls2 = r.take_if(c.layer_scale, b + "ls2.gamma", {d});
  return block;
}

// W [q; k; v] and b with the learned query put through the rows of q, and those then zero:
// W [0; k; v] and b [q latent + b; ...].
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

Block attention_pool_of(const Reader& r, int64_t d, DType compute) {
  const std::string p = "attn_pool.";
  Block pool;
  const int64_t hidden = r.values(p + "mlp.fc1.weight").size() / size_t(d);
  pool.qkv = pooling_query(r, d, compute);
  pool.proj = r.linear(p + "proj", d, d);
  pool.norm2_weight = r.take(p + "norm.weight", {d});
  pool.norm2_bias = r.take(p + "norm.bias", {d});
  pool.fc1 = r.linear(p + "mlp.fc1", hidden, d);
  pool.fc2 = r.linear(p + "mlp.fc2", d, hidden);
  return pool;
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

// The classifier of a merged model, whose file lies beside the weights: kHeadFile.
void take_head_beside(const std::string& main, Vit& m) {
  const std::string path = (std::filesystem::path(main).parent_path() / kHeadFile).string();
  if (!std::filesystem::exists(path)) return;
  const TensorMap tensors = load_safetensors(path).tensors;
  const auto weight = tensors.find("weight"), bias = tensors.find("bias");
  if (weight == tensors.end() || bias == tensors.end() || weight->second.rank() != 2 ||
      weight->second.cols() != m.config.feature_dim() ||
      !(bias->second.shape() == Shape({weight->second.rows()})))
    throw UserError(
        fmt::format("{}: a classifier of these weights has 'weight' [classes, {}] and "
                    "'bias' [classes]",
                    path, m.config.feature_dim()));
  const DType sums = accum(m.compute);
  const auto taken = [&](const Tensor& from) {
    const Tensor t = Tensor::empty(from.shape(), sums);
    t.copy_from(from);
    return Var(t);
  };
  m.head = Linear(taken(weight->second), taken(bias->second), sums);
  m.config.classes = weight->second.rows();
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
  const Reader r(architecture, tensors, compute, trainable);
  OF_CHECK(!trainable || (c.prefix() == (c.class_token ? 1 : 0) && c.grid == c.side()),
           "only a plain ViT at its own image size trains its tokens");

  const int64_t d = c.dim;
  m.patch_embed = r.linear("patch_embed.proj", d, 3 * c.patch * c.patch);
  const auto fixed = [&](const std::vector<double>& values, int64_t rows, const std::string& name) {
    return Var(Tensor::of(values, {rows, d}).to(sums).contiguous(), trainable, name);
  };
  if (c.prefix() > 0) m.own_tokens = fixed(own_tokens_of(r), c.prefix(), "cls_token");
  m.pos_embed = fixed(positions_of(r, c), c.tokens(), "pos_embed");
  if (c.positions == PositionRule::rotary) m.rotation = rotation_of(c, sums);
  m.norm_pre_weight = r.take_if(c.pre_norm, "norm_pre.weight", {d});
  m.norm_pre_bias = r.take_if(c.pre_norm, "norm_pre.bias", {d});
  for (int64_t i = 0; i < c.depth; ++i) m.blocks.push_back(block_of(r, c, i));
  const std::string norm = c.norm_after_pool ? "fc_norm" : "norm";
  m.norm_weight = r.take(norm + ".weight", {d});
  m.norm_bias = r.take(norm + ".bias", {d});
  if (c.pool == Pool::attention) m.attention_pool = attention_pool_of(r, d, compute);
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
    if (!m.has_head()) take_head_beside(checkpoint_files(weights).main, m);
    return m;
  } catch (const UserError& error) {
    throw UserError(fmt::format("{}: {}", weights, error.what()));
  }
}

}  // namespace orthofed
