// A vision transformer (Dosovitskiy et al., arXiv 2010.11929) of any family that is recognised
// (models/vit/architecture.h), with timm's tensor names inside.
//
// Its geometry comes from the weights' shapes and, where shapes do not tell (heads, eps, mean, std,
// ...), from config.json, never from a guess. A loaded model is frozen; a created one trains every
// one of its parameters.
#pragma once
#include <string>
#include <vector>

#include "engine/tensor/tensor_map.h"
#include "models/vit/architecture.h"
#include "models/vit/block.h"

namespace orthofed {

class Vit {
 public:
  // weights: a checkpoint (engine/io/checkpoint.h). config: its config.json; empty: the one beside
  // it. compute: the dtype of activations (f32, bf16; f64 for gradient checks). image_size: what it
  // will read, a multiple of its patch; 0: as configured. Throws UserError naming the tensor or key
  // that is missing or has the wrong shape.
  static Vit load(const std::string& weights, const std::string& config, DType compute,
                  int64_t image_size = 0);
  // The same from tensors in memory, of any recognised family or of timm's with this configuration.
  static Vit from_tensors(const Architecture& architecture, const TensorMap& tensors, DType compute,
                          bool trainable, int64_t image_size = 0);
  static Vit from_tensors(const VitConfig& config, const TensorMap& tensors, DType compute,
                          bool trainable);
  // Creates a plain ViT with random weights, truncated normal(0, .02) as in timm, drawn by name
  // from the seed; all are trainable.
  static Vit create(const VitConfig& config, DType compute, uint64_t seed);

  // Computes the pooled features after the final norm, [batch, config.feature_dim()] in
  // accum(compute), from patches [batch * config.patches(), 3 * patch^2] in the compute dtype. The
  // model must outlive the tape's backward.
  Var features(Tape& tape, const Tensor& patches, int64_t batch,
               SliceObserver* observer = nullptr) const;
  // Multiplies features by the file's own head: [batch, classes].
  Var logits(Tape& tape, const Var& features) const;
  // Computes CLIP's image embedding, features times its projection: [batch, projection].
  Var embedding(Tape& tape, const Var& features) const;

  // From here on the blocks' frozen matrices multiply in FP8 (Linear::quantize). What comes before
  // and after the blocks, a fraction of a per cent of the work, stays as it is. One call is enough.
  // Throws UserError where activations are not bf16 or the device has no FP8 products.
  void quantize();

  TensorMap tensors() const;              // of a created model, by timm name, to save
  std::vector<Var> parameters() const;    // every base parameter
  Linear* find(const std::string& name);  // "blocks.3.attn.qkv"; null if there is none

  VitConfig config;
  std::vector<Remark> unused;  // tensors of the file that this model has no use for
  DType compute = DType::f32;
  std::string sha256;  // sha256_of_checkpoint; empty for a created model
  Linear patch_embed;
  Var own_tokens, pos_embed;  // [prefix, dim] or undefined, [tokens, dim]
  Rotation rotation;          // rotary models
  Var norm_pre_weight, norm_pre_bias;
  std::vector<Block> blocks;
  Var norm_weight, norm_bias;  // before the pooling, or after it (config.norm_after_pool)
  // Attention pooling (SigLIP): y = proj(attention of one learned query), y + mlp(norm(y)). The
  // query is the same for all images, so it is computed once and stands in qkv's bias, where the
  // rows of q are zero: every token asks the same question, and the first one's answer is taken.
  Block attention_pool;     // qkv, proj, norm2, fc1, fc2
  Linear head, projection;  // undefined weights if the file has none
  bool has_head() const { return head.weight.defined(); }
  Device device() const { return patch_embed.weight.value().device(); }  // where it computes

 private:
  BlockOptions block_options() const;
  Var pool(Tape& tape, const Var& x, int64_t batch) const;
};

}  // namespace orthofed
