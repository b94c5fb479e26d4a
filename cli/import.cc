#include <fmt/core.h>

#include <filesystem>
#include <iostream>

#include "cli/commands.h"
#include "cli/terminal/json.h"
#include "cli/terminal/terminal.h"
#include "engine/io/files.h"
#include "models/adapters/peft.h"

namespace orthofed::cli {

int import_command(const ImportArguments& o) {
  Terminal terminal(o.global);
  const BaseFile base = BaseFile::open(o.weights, o.config);
  const PeftAdapter peft = load_peft(o.folder, base);
  if (std::filesystem::exists(o.out))
    throw UserError(fmt::format("{}: is there already; name another file or remove it", o.out));
  if (peft.origin && peft.origin->base_sha256 != base.sha256)
    throw UserError(
        fmt::format("{}: was exported for another base model (sha256 {:.12}..., the weights given "
                    "are {:.12}...)",
                    o.folder, peft.origin->base_sha256, base.sha256));
  SliceAdapters slices;
  try {
    slices = slice_adapters(base, peft.modules);
  } catch (const UserError& error) {
    throw UserError(fmt::format("{}: {}", o.folder, error.what()));
  }
  AdapterFile file;
  const std::string kind = !o.adapter.empty() ? o.adapter : peft.origin ? peft.origin->kind : "";
  file.kind = kind == "personal" ? AdapterKind::personal : AdapterKind::general;
  file.scale = slices.scale;
  file.base_sha256 = base.sha256;
  file.tensors = slices.tensors;
  if (peft.origin) {
    file.method = peft.origin->method;
    file.round = peft.origin->round;
    file.classes = peft.origin->classes;
    file.preprocessing = peft.origin->preprocessing;
  }
  if (!o.classes.empty()) file.classes = o.classes;
  if (peft.head) {
    const int64_t classes = peft.head->weight.rows();
    if (!file.classes.empty() && int64_t(file.classes.size()) != classes)
      throw UserError(fmt::format("--class: {} names for a classifier of {} classes",
                                  file.classes.size(), classes));
    if (file.classes.empty())
      terminal.warning("the classes have no names; --class names them, in the classifier's order");
    file.tensors["head.weight"] = peft.head->weight;
    file.tensors["head.bias"] = peft.head->bias;
  }
  save_adapter(o.out, file);
  const char* name = name_of(file.kind);
  if (o.global.json)
    std::cout << json_object({{"adapter", json_text(name)},
                              {"modules", std::to_string(peft.modules.size())},
                              {"head", json_flag(peft.head.has_value())},
                              {"out", json_text(o.out)}})
              << "\n";
  else if (!o.global.quiet)
    std::cout << fmt::format("{} adapter of {} modules{} in {}\n", name, peft.modules.size(),
                             peft.head ? " and a classifier" : "", o.out);
  return 0;
}

}  // namespace orthofed::cli
