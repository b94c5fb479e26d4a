// README.md beside what is exported: where it comes from, what it was scored on, how it is used.
// Every figure is from the run's summary or from the adapters' metadata; the card says of what
// neither knows that it is unknown.
#pragma once
#include <optional>
#include <span>
#include <string>

#include "federation/report/summary.h"
#include "models/adapters/adapter_file.h"

namespace orthofed {

struct ModelCard {
  std::string title;
  std::string hub_name;               // the hub's library_name: peft | timm
  std::string base_name;              // of the base model's file
  std::string what;                   // one sentence: which adapters, in which form
  std::string use;                    // lines of code
  std::optional<RunSummary> summary;  // absent: exported from adapter files
};

// Markdown. The adapters tell method, rounds, classes, ranks and the base's sha256.
std::string to_markdown(const ModelCard& card, std::span<const AdapterFile> adapters);

}  // namespace orthofed
