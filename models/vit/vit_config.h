// The geometry of a vision transformer and of its input: what the weights' shapes tell, and what
// only a configuration beside them tells (heads, eps, activation, mean, std, crop, ...).
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "kernels/gelu/gelu.h"

namespace orthofed {

// A feature vector is read from these tokens after the last block.
enum class Pool {
  token,              // the class token
  average,            // the mean of the patches
  token_and_average,  // both, side by side: [2 dim]
  two_tokens,         // class and distillation token, side by side: [2 dim]
  attention,          // one learned query attends to the tokens (SigLIP)
};

// How a family resamples its position embedding for another image size (docs/backbones.md).
enum class PositionRule {
  antialias,  // bicubic with antialias to the new grid: timm, OpenCLIP, DINOv2 with registers
  plain,      // bicubic (a = -3/4) without: Hugging Face vit, dinov2, clip, siglip
  offset,     // plain, but by the factor (grid + 0.1) / old grid: DINOv2's own code
  rotary,     // nothing to resample: q and k are rotated by normalised coordinates (DINOv3)
};
const char* name_of(PositionRule rule);

struct VitConfig {
  std::string name = "vit";
  int64_t image_size = 224;  // what the model reads: any multiple of patch
  int64_t patch = 16, dim = 192, depth = 12, heads = 3;
  int64_t mlp_dim = 768;  // inputs of fc2; fc1 has twice as many outputs where gated
  int64_t classes = 0;    // of the head in the file; 0: it has none
  bool class_token = true, distillation_token = false;
  int64_t registers = 0;  // tokens between these and the patches
  Pool pool = Pool::token;
  bool norm_after_pool = false;  // timm's fc_norm: the mean first, then the norm
  bool pre_norm = false;         // a LayerNorm before the first block (CLIP)
  bool qk_norm = false;          // LayerNorm of every head's q and k
  bool layer_scale = false;
  bool gated_mlp = false;  // SwiGLU: fc2(silu(gate) * up), fc1 = [gate; up]
  GeluKind gelu = GeluKind::erf;
  double eps = 1e-6;
  PositionRule positions = PositionRule::antialias;
  int64_t grid = 0;         // side of the file's position embedding; 0: as image_size
  double rope_theta = 100;  // rotary
  int64_t projection = 0;   // width of CLIP's image embedding; 0: none in the file
  float mean[3] = {0.5f, 0.5f, 0.5f}, std[3] = {0.5f, 0.5f, 0.5f};  // of pixels in [0, 1]
  std::string interpolation = "bicubic";
  double crop_pct = 1.0;  // as resize_to_square (engine/io/resize.h)

  int64_t side() const { return image_size / patch; }
  int64_t patches() const { return side() * side(); }
  int64_t prefix() const {  // tokens before the patches
    return (class_token ? 1 : 0) + (distillation_token ? 1 : 0) + registers;
  }
  int64_t tokens() const { return prefix() + patches(); }
  int64_t feature_dim() const {
    return pool == Pool::token_and_average || pool == Pool::two_tokens ? 2 * dim : dim;
  }
  std::string json() const;  // what config.json holds
};

// The texts of the configuration files beside the weights, and where they are from, for messages.
struct ConfigFiles {
  std::string config;        // config.json or open_clip_config.json; empty: none
  std::string preprocessor;  // preprocessor_config.json; empty: none
  std::string config_path = "config.json", preprocessor_path = "preprocessor_config.json";

  // Those beside `weights`; `config`, if not empty, names the first one instead. Throws UserError
  // if a file that was named is missing.
  static ConfigFiles beside(const std::string& weights, const std::string& config);
};

// What the files say and VitConfig has no field for.
struct ConfigHints {
  std::optional<Pool> pool;
  bool silu = false;  // the activation is SiLU, which only a gated MLP has here
  bool gelu_given = false, eps_given = false;
  int64_t image_size = 0;    // 0: not given
  std::string architecture;  // timm's name of the model: "vit_base_patch16_224"
};

// Overwrites in `c` what the files say: timm's, Hugging Face's and OpenCLIP's keys. Throws
// UserError naming file and key.
ConfigHints read_config(const ConfigFiles& files, VitConfig& c);

}  // namespace orthofed
