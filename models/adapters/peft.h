// PEFT (https://github.com/huggingface/peft) stores an adapter as a folder with
// adapter_model.safetensors and adapter_config.json, which PeftModel.save_pretrained writes and
// from_pretrained reads.
//
//   base_model.model.MODULE.lora_A.weight [R, in], .lora_B.weight [out, R];  s = lora_alpha / r
//   base_model.model.HEAD.weight, .bias  with HEAD in modules_to_save; where the library has no
//   classifier that reads our features, head.safetensors beside them has `weight` and `bias`
//
// r and lora_alpha hold for all modules but those that rank_pattern and alpha_pattern name
// (peft/tuners/lora/model.py; a pattern is matched against the end of a module's name).
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "models/adapters/module_adapter.h"

namespace orthofed {

// PEFT has no place for these facts about an adapter: they travel in the safetensors' metadata,
// which PEFT drops when it saves.
struct PeftOrigin {
  std::string kind;  // general | personal | both
  std::vector<std::string> classes;
  std::string base_sha256, method;
  int64_t round = 0;
  Preprocessing preprocessing = {};
};

struct PeftAdapter {
  std::vector<ModuleAdapter> modules;
  std::optional<HeadTensors> head;
  std::optional<PeftOrigin> origin;
};

// Writes the two files into `folder`, which exists.
void save_peft(const std::string& folder, const BaseFile& base, const PeftAdapter& adapter);

// Throws UserError for what PEFT can do and orthofed cannot (DoRA, rsLoRA, biases, other adapters
// than LoRA, initialisations that change the base, ...), with the name of the option or tensor and
// the remedy.
PeftAdapter load_peft(const std::string& folder, const BaseFile& base);

}  // namespace orthofed
