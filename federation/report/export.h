// Adapters as other programs read them, with a model card beside them.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "federation/report/summary.h"
#include "models/adapters/adapter_file.h"
#include "models/vit/base_file.h"

namespace orthofed {

enum class ExportForm : uint8_t {
  merged,     // the base model's weights with the adapters added to them
  peft,       // one adapter for PEFT, which is the sum of those that are given
  peft_pair,  // two named adapters for PEFT, in FOLDER/general and FOLDER/personal
};

struct ExportOptions {
  ExportForm form = ExportForm::peft;
  ModuleNames names = ModuleNames::transformers5;  // for PEFT
  std::string client;                              // whose personal adapter; empty: not told
  std::string use;                                 // the card's lines of code
  std::optional<RunSummary> summary;               // of the run that trained them, if it is known
};

// Writes the folder, which must not exist, whole or not at all. adapters: one general or personal
// adapter, or both in this order. Returns what was written, in one sentence.
std::string export_adapters(const std::string& folder, const BaseFile& base,
                            std::span<const AdapterFile> adapters, const ExportOptions& options);

}  // namespace orthofed
