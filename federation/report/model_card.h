// README.md beside what is exported: where it comes from, what it was scored on, how it is used.
// Every figure is from the run's summary.json or from the adapters' metadata; what neither knows is
// said to be unknown.
#pragma once
#include <span>
#include <string>

#include "models/adapters/adapter_file.h"

namespace orthofed {

struct ModelCard {
  std::string title;
  std::string hub_name;      // the hub's library_name: peft | timm
  std::string base_name;     // of the base model's file
  std::string what;          // one sentence: which adapters, in which form
  std::string use;           // lines of code
  std::string summary_path;  // the run's summary.json; empty: exported from adapter files
};

// Markdown. The adapters tell method, rounds, classes, ranks and the base's sha256. Throws
// UserError where summary.json cannot be read.
std::string to_markdown(const ModelCard& card, std::span<const AdapterFile> adapters);

}  // namespace orthofed
