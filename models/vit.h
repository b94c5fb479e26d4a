// A vision transformer (Dosovitskiy et al., arXiv 2010.11929) with timm's tensor names.
//
// Geometry comes from the weights' shapes and from config.json (what shapes cannot tell: heads,
// eps, mean, std, ...), never from a guess. A loaded model is frozen; a created one trains every
// parameter.
#pragma once
#include <string>
#include <vector>

#include "engine/tensor/tensor_map.h"
#include "models/block.h"

namespace orthofed {

struct VitConfig {
  std::string name = "vit";
  int64_t image_size = 224, patch = 16, dim = 192, depth = 12, heads = 3, mlp_dim = 768;
  int64_t classes = 0;  // of the head in the file; 0: it has none
  bool class_token = true;
  bool pool_average = false;  // the feature is the mean of the patches, not the class token
  bool layer_scale = false;
  double eps = 1e-6;
  GeluKind gelu = GeluKind::erf;
  float mean[3] = {0.5f, 0.5f, 0.5f}, std[3] = {0.5f, 0.5f, 0.5f};  // of pixels in [0, 1]
  std::string interpolation = "bicubic";
  double crop_pct = 1.0;

  int64_t patches() const { return (image_size / patch) * (image_size / patch); }
  int64_t tokens() const { return patches() + (class_token ? 1 : 0); }
  std::string json() const;  // what config.json holds
};

class Vit {
 public:
  // weights: a checkpoint (engine/io/checkpoint.h). config: its config.json; empty: the file of
  // that name beside it. compute: the dtype of activations (f32, bf16; f64 for gradient checks).
  // Throws UserError naming the tensor or key that is missing or has the wrong shape.
  static Vit load(const std::string& weights, const std::string& config, DType compute);
  // The same from tensors in memory.
  static Vit from_tensors(const VitConfig& config, const TensorMap& tensors, DType compute,
                          bool trainable);
  // Random weights, truncated normal(0, .02) as timm's, all trainable; drawn by name from the seed.
  static Vit create(const VitConfig& config, DType compute, uint64_t seed);

  // patches [batch * config.patches(), 3 * patch^2] in compute dtype -> pooled features after the
  // final norm, [batch, dim] in accum(compute). The model must outlive the tape's backward.
  Var features(Tape& tape, const Tensor& patches, int64_t batch,
               FeaturesPenalty* penalty = nullptr) const;
  // features times the file's own head, [batch, classes].
  Var logits(Tape& tape, const Var& features) const;

  TensorMap tensors() const;              // by timm name, to save
  std::vector<Var> parameters() const;    // every base parameter
  Linear* find(const std::string& name);  // "blocks.3.attn.qkv"; null if there is none

  VitConfig config;
  DType compute = DType::f32;
  std::string sha256;  // sha256_of_checkpoint; empty for a created model
  Linear patch_embed;
  Var cls_token, pos_embed;  // [dim], [tokens, dim]
  std::vector<Block> blocks;
  Var norm_weight, norm_bias;
  Linear head;  // undefined weight if the file has none
  bool has_head() const { return head.weight.defined(); }
  Device device() const { return patch_embed.weight.value().device(); }  // where it computes
};

// config.json beside weights, or `config`. Throws UserError naming the key.
VitConfig read_vit_config(const std::string& path);

}  // namespace orthofed
