// A file of weights is recognised as a vision transformer by the names and shapes of its tensors
// and by the configuration beside it. A family is a table of names (models/vit/families.cc),
// not code.
//
// Inside, every model has timm's names ("blocks.3.attn.qkv.weight"); a family says from which
// tensors of the file each of them is made.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "engine/tensor/tensor_map.h"
#include "models/vit/vit_config.h"

namespace orthofed {

using TensorShapes = std::map<std::string, Shape>;
TensorShapes shapes_of(const TensorMap& tensors);

// A tensor of the file, and how many rows of ours it fills.
struct Source {
  std::string tensor;  // empty: the file has none here (an absent key bias), the rows are zero
  int64_t rows = 0;
};

struct Remark {
  std::string tensor, text;
};

// The file of our classifier beside weights that have no place for it: `weight` [C, features] and
// `bias` [C], f32, which read the features of this model.
inline constexpr const char* kHeadFile = "head.safetensors";

struct Architecture {
  std::string family;  // for people: "Hugging Face dinov2"
  std::string naming;  // for programs: timm, dinov2, open_clip, open_clip_timm, hf_vit, hf_dinov2,
                       // hf_dinov2_with_registers, hf_dinov3_vit, hf_clip, hf_siglip
  std::string prefix;  // of the vision tower's names in the file
  VitConfig config;
  // Our name -> the file's tensors, stacked along their rows: one, or q, k and v of a fused qkv,
  // or gate and up of a fused fc1.
  std::map<std::string, std::vector<Source>> sources;
  std::vector<Remark> unused;      // known to the family and left aside: "mask_token", "text tower"
  std::vector<Remark> mismatches;  // why it cannot be loaded, in the names' order; empty: it can
  // Maps a layer of ours to its modules in the file, in the order they are stacked:
  // "blocks.3.attn.q" -> "encoder.layer.3.attention.attention.query". Empty if there is no
  // such layer.
  std::vector<std::string> modules_of(const std::string& layer) const;
};

// Returns the family that fits, or else the nearest one with what did not fit. Throws UserError
// only where a configuration file cannot be read.
Architecture examine(const TensorShapes& shapes, const ConfigFiles& files);

// Does the same, but where no family fits it throws a UserError of one line that names the nearest
// family and the first tensor that does not fit.
Architecture recognise(const TensorShapes& shapes, const ConfigFiles& files);

// Tells in one line, by reason, what is left aside: "left aside: 1 tensor: of masked pretraining
// alone (mask_token); 149 tensors: of the text tower (text_projection, ...)". Empty if nothing is.
std::string left_aside(const std::vector<Remark>& unused);

}  // namespace orthofed
