// A bundle is the full weights with adapters merged into them, in the names and the layout of the
// base model's file: model.safetensors and config.json in one folder, for orthofed and for the
// library that the base model is from. Where that library has no classifier that reads our features
// (CLIP, DINOv2), the classifier is head.safetensors beside them (models/vit/architecture.h), so
// that the weights still load strictly.
//
//   W' = W + s B A, summed in double and rounded once to fp32
#pragma once
#include <span>
#include <string>
#include <vector>

#include "models/adapters/module_adapter.h"

namespace orthofed {

// Returns the base's tensors, with the adapters' head in place of the file's where the library has
// one. Tensors of adapted modules are in fp32 whatever the file has, because a half type would
// round the update away. What changed is a copy.
TensorMap merged_tensors(const BaseFile& base, std::span<const AdapterFile> adapters);

// Writes the files into `folder`, which exists. The configuration is the base's with the number and
// names of the classes (timm's num_classes and label_names) and the preprocessing that training
// used. Throws UserError where the base has no config.json.
void save_merged(const std::string& folder, const BaseFile& base,
                 std::span<const AdapterFile> adapters);

// Returns the classes that the configuration beside the weights (or `config`) names: timm's
// label_names, Hugging Face's id2label. Empty if it names none.
std::vector<std::string> label_names(const std::string& weights, const std::string& config);

}  // namespace orthofed
