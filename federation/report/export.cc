#include "federation/report/export.h"

#include <fmt/core.h>

#include <filesystem>

#include "engine/io/checkpoint.h"
#include "engine/io/files.h"
#include "federation/report/model_card.h"
#include "models/adapters/bundle.h"
#include "models/adapters/peft.h"

namespace orthofed {
namespace {

PeftAdapter peft_adapter(const BaseFile& base, const std::string& kind,
                         std::span<const AdapterFile> files, ModuleNames names) {
  const AdapterFile& first = files[0];
  return {module_adapters(base, files, names), head_of(files),
          PeftOrigin{kind, first.classes, first.base_sha256, first.method, first.round,
                     first.preprocessing}};
}

// PEFT has one active classifier: the pair's is in one folder alone, in the personal one where a
// part of it is personal.
void save_pair(const std::string& folder, const BaseFile& base, std::span<const AdapterFile> pair,
               ModuleNames names) {
  PeftAdapter general = peft_adapter(base, "general", pair.first(1), names),
              personal = peft_adapter(base, "personal", pair.last(1), names);
  (personal.head ? personal : general).head = head_of(pair);
  if (personal.head) general.head.reset();
  for (const auto& [name, adapter] : {std::pair("general", &general), {"personal", &personal}}) {
    const std::string to = folder + "/" + name;
    make_directories(to);
    save_peft(to, base, *adapter);
  }
}

std::string card_sentence(ExportForm form, const std::string& adapters, bool both) {
  switch (form) {
    case ExportForm::merged:
      return fmt::format("Full weights: the base model with the {} merged into it.", adapters);
    case ExportForm::peft_pair:
      return "Two LoRA adapters for PEFT, `general` and `personal`, to be active together.";
    case ExportForm::peft:
      break;
  }
  return fmt::format("A LoRA adapter for PEFT: the {}{}.", adapters,
                     both ? ", concatenated into one" : "");
}

}  // namespace

std::string export_adapters(const std::string& folder, const BaseFile& base,
                            std::span<const AdapterFile> adapters, const ExportOptions& options) {
  OF_CHECK(!adapters.empty() && adapters.size() <= 2, "one adapter or two");
  const bool both = adapters.size() == 2, general = adapters[0].kind == AdapterKind::general;
  OF_CHECK(both || options.form != ExportForm::peft_pair, "a pair is two adapters");
  AtomicFolder out(folder);
  switch (options.form) {
    case ExportForm::merged:
      save_merged(out.path(), base, adapters);
      break;
    case ExportForm::peft_pair:
      save_pair(out.path(), base, adapters, options.names);
      break;
    case ExportForm::peft:
      save_peft(out.path(), base,
                peft_adapter(base,
                             both      ? "both"
                             : general ? "general"
                                       : "personal",
                             adapters, options.names));
      break;
  }
  const std::string whose = options.client.empty() ? "" : " of " + options.client;
  const std::string words = both      ? "general and the personal adapter" + whose
                            : general ? "general adapter"
                                      : "personal adapter" + whose;
  ModelCard card;
  card.base_name = std::filesystem::path(checkpoint_files(base.path).main).filename().string();
  card.title = fmt::format("{} with the {}", card.base_name, words);
  card.hub_name = options.form == ExportForm::merged ? "timm" : "peft";
  card.what = card_sentence(options.form, words, both);
  card.use = options.use;
  card.summary = options.summary;
  write_file(out.path() + "/README.md", to_markdown(card, adapters));
  out.commit();
  return card.what;
}

}  // namespace orthofed
