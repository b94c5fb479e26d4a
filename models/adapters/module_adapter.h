// Other programs expect one low-rank update per module of the file, whatever slices of which layers
// it was trained on, and one classifier.
//
//   Delta W = s * B A,   A [R, in],   B [rows of the module, R]
//
// The adapters that meet in a module are stacked: A one below the other, B side by side, each part
// of B in the rows of its own slice and zero elsewhere (sum_i B_i A_i = [B_1 .. B_n][A_1; ..;
// A_n]). So q, k and v of one fused weight become one update of rank 3r with a block-diagonal B,
// and a general and a personal adapter one of rank r_g + r_p. A module has one s, the first
// adapter's; another adapter's s_i is kept by storing (s_i / s) B_i.
#pragma once
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "models/adapters/adapter_file.h"
#include "models/vit/base_file.h"

namespace orthofed {

struct ModuleAdapter {
  std::string module;  // its name in the base model's file, or in the library
  Tensor a, b;         // f32
  double scale = 0;    // s
  std::string weight;  // the module's tensor; empty where it was read from PEFT
  int64_t rank() const { return a.rows(); }
};

// Stacks the adapters by module, in the order of the layers; `names` says which names the modules
// get. Throws UserError where an adapter was trained on another base model, or does not fit
// this one.
std::vector<ModuleAdapter> module_adapters(const BaseFile& base,
                                           std::span<const AdapterFile> adapters,
                                           ModuleNames names = ModuleNames::file);

// Goes the other way, to slices of our layers with one scale for all: what module_adapters stacked
// for q, k and v is taken apart where B is still block-diagonal; else it stays one update of the
// fused weight. Modules may have any of their names. Throws UserError naming a module that is not
// one of the base's layers or has another shape.
struct SliceAdapters {
  double scale = 0;
  TensorMap tensors;  // "blocks.0.attn.q.lora_A.weight" ...
};
SliceAdapters slice_adapters(const BaseFile& base, std::span<const ModuleAdapter> modules);

// The head that Predictor (models/adapters/adapter_file.h) uses with these adapters:
// logits = weight f + bias. A head that was trained in two parts ("both") is their sum. There may
// be no head.
struct HeadTensors {
  Tensor weight, bias;  // f32 [C, D], [C]
};
std::optional<HeadTensors> head_of(std::span<const AdapterFile> adapters);

}  // namespace orthofed
