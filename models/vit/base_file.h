// A base model as it lies in its files: names, shapes and bytes, without a model that computes.
// Other programs speak of modules ("encoder.layer.3.attention.attention.query"), our adapters of
// layers with timm's names ("blocks.3.attn.qkv"); this file translates between the two.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/io/checkpoint.h"
#include "models/vit/architecture.h"

namespace orthofed {

// Who gives the modules their names: the file, or the models of Hugging Face's transformers, which
// since version 5 use other names than the files. For all other families the names are the same.
enum class ModuleNames { file, transformers4, transformers5 };

// A module, and the rows of our layer that it makes up: all of them, or those of q, k or v.
struct ModuleRows {
  std::string module;  // "blocks.3.attn.qkv"
  std::string weight;  // its tensor, as a rule module + ".weight"
  int64_t begin = 0, rows = 0;
};

struct BaseFile {
  std::string path;    // as it was given
  std::string sha256;  // sha256_of_checkpoint
  Safetensors file;
  ConfigFiles configs;  // beside it
  Architecture architecture;

  // Throws UserError where the file is no model that we read.
  static BaseFile open(const std::string& weights, const std::string& config);

  std::vector<std::string> layers() const;  // every layer that can be adapted, block by block
  // The modules that make up a layer, by rows. Throws UserError if there is no such layer.
  std::vector<ModuleRows> modules_of(const std::string& layer,
                                     ModuleNames names = ModuleNames::file) const;
  // Every name that a layer's module may have, of any version and in any model around this one
  // ("vit.layers.0.mlp.fc1" for a file of Hugging Face's ViTModel), and its layer.
  std::map<std::string, std::pair<std::string, ModuleRows>> known_modules() const;
  int64_t inputs_of(const std::string& layer) const;  // columns of its weight

  // The classifier's module in the library that the names are from, where it reads the same
  // features as ours: timm's "head", "classifier" of Hugging Face's ViT. Nothing for towers without
  // a classifier, and for those whose classifier reads other features.
  std::optional<std::string> head() const;
  // What comes before a file's name in the model that has this classifier: "vit." for a file of
  // Hugging Face's ViTModel, whose ViTForImageClassification holds it as `vit`.
  std::string outer() const;
};

}  // namespace orthofed
