// Adapters are stored as safetensors with PEFT's tensor names. The metadata hold what is needed to
// use them without the configuration they were trained with.
#pragma once
#include <string>
#include <vector>

#include "models/adapters/lora.h"

namespace orthofed {

// The preparation of the images that an adapter was trained on, as far as it differs from what the
// base model asks for: the fields of [data] with these names.
struct Preprocessing {
  int64_t image_size = 0;     // 0: the model's
  double crop_pct = -1;       // -1: the model's
  std::string interpolation;  // empty: the model's
};
inline Preprocessing preprocessing_of(const DataConfig& data) {
  return {data.image_size, data.crop_pct, word(data.interpolation)};
}

struct AdapterFile {
  AdapterKind kind = AdapterKind::general;
  double scale = 0;                  // s = alpha / rank
  std::vector<std::string> classes;  // of the head's rows
  std::string base_sha256;           // of the base model's file
  std::string method;
  int64_t round = 0;  // rounds of training behind it
  // "blocks.0.attn.qkv.lora_A.weight" ...; "head.weight", "head.bias", "personal_head.*" where
  // there are such.
  TensorMap tensors;
  Preprocessing preprocessing = {};
};

void save_adapter(const std::string& path, const AdapterFile& file);
// Throws UserError where the file is not an adapter that orthofed wrote.
AdapterFile load_adapter(const std::string& path);

// A base model with trained adapters, for prediction.
class Predictor {
 public:
  // Any number of adapters, at most one of each kind; without a head of theirs the base model's own
  // is used. Images are to be prepared as the adapters' were, which model().config then says.
  // Throws UserError where they do not fit, or were trained on another base model.
  Predictor(std::unique_ptr<Vit> model, const std::vector<std::string>& adapters);

  const Vit& model() const { return *model_; }
  const std::vector<std::string>& classes() const { return classes_; }  // empty: unnamed
  bool has_head() const { return head_.weight.defined(); }

  struct Output {
    Tensor features;  // f32 [N, D], after the final norm, pooled
    Tensor logits;    // f32 [N, C]; undefined without a head
  };
  // patches [batch * patches, 3 * patch^2] in the model's compute dtype.
  Output predict(const Tensor& patches, int64_t batch) const;

 private:
  std::unique_ptr<Vit> model_;
  Linear head_, personal_head_;
  std::vector<std::string> classes_;
};

}  // namespace orthofed
