#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <optional>

#include "cli/commands.h"
#include "cli/terminal/json.h"
#include "engine/io/files.h"
#include "engine/io/text.h"
#include "federation/report/model_card.h"
#include "models/adapters/bundle.h"
#include "models/adapters/peft.h"
#include "models/config/toml.h"

namespace orthofed::cli {
namespace {

namespace fs = std::filesystem;

constexpr const char* kGeneral = "general_adapter.safetensors";
constexpr const char* kPersonal = "personal_adapter.safetensors";

// What the command is pointed at: files of adapters, and the run they are from if that is known.
struct Origin {
  std::vector<AdapterFile> adapters;  // at most one general, then at most one personal
  std::optional<RunConfig> config;    // of the run
  std::optional<RunSummary> summary;  // of the run, if it is done
};

std::string if_there(const fs::path& path) {
  return fs::exists(path) ? path.string() : "";
}

// The personal adapter below a run's folder: its own (one site), or the client's that is named.
std::string personal_in(const fs::path& run, const std::string& client) {
  if (!client.empty()) {
    const fs::path path = run / "clients" / client / kPersonal;
    if (fs::exists(path)) return path.string();
    throw UserError(fmt::format("--client: there is no {}", path.string()));
  }
  if (fs::exists(run / kPersonal)) return (run / kPersonal).string();
  std::vector<std::string> clients;
  if (fs::is_directory(run / "clients"))
    for (const auto& entry : fs::directory_iterator(run / "clients"))
      if (fs::exists(entry.path() / kPersonal)) clients.push_back(entry.path().filename());
  std::sort(clients.begin(), clients.end());
  if (!clients.empty())
    throw UserError(fmt::format("{}: whose personal adapter? --client {}", run.string(),
                                joined(clients, " or --client ")));
  return "";
}

Origin from_run(const ExportOptions& o, const std::string& folder) {
  const fs::path run(folder);
  const std::string general = if_there(run / kGeneral);
  // A personal adapter leaves its site's folder only when it is asked for.
  const bool wants_personal =
      o.adapter == "personal" || o.adapter == "both" || (o.adapter.empty() && general.empty());
  const std::string personal = wants_personal ? personal_in(run, o.client) : "";
  Origin origin;
  for (const std::string& path : {general, personal})
    if (!path.empty()) origin.adapters.push_back(load_adapter(path));
  if (origin.adapters.empty())
    throw UserError(fmt::format(
        "{}: holds no {}{}; give the folder of a run that is done, or the adapter's file", folder,
        wants_personal ? kPersonal : kGeneral,
        o.adapter.empty() ? fmt::format(" and no {}", kGeneral) : ""));
  if (fs::exists(run / "config.toml")) origin.config = load_config(run / "config.toml");
  if (fs::exists(run / "summary.json")) origin.summary = read_summary(run / "summary.json");
  return origin;
}

Origin origin_of(const ExportOptions& o) {
  if (o.sources.size() == 1 && fs::is_directory(o.sources[0])) return from_run(o, o.sources[0]);
  if (!o.client.empty()) throw UserError("--client: chooses among a run's clients; give the run");
  Origin origin;
  for (const std::string& path : o.sources) {
    if (fs::is_directory(path))
      throw UserError(fmt::format("{}: give one run, or the files of adapters", path));
    origin.adapters.push_back(load_adapter(path));
  }
  std::stable_sort(origin.adapters.begin(), origin.adapters.end(),
                   [](const AdapterFile& a, const AdapterFile& b) {
                     return a.kind == AdapterKind::general && b.kind == AdapterKind::personal;
                   });
  for (size_t i = 1; i < origin.adapters.size(); ++i)
    if (origin.adapters[i].kind == origin.adapters[i - 1].kind)
      throw UserError("two adapters of one kind; give at most one general and one personal");
  return origin;
}

const AdapterFile* find(const Origin& origin, AdapterKind kind) {
  for (const AdapterFile& file : origin.adapters)
    if (file.kind == kind) return &file;
  return nullptr;
}

// "general", "personal" or "both": what --adapter says or else what is there, which must be there.
std::string chosen(const ExportOptions& o, const Origin& origin) {
  const bool general = find(origin, AdapterKind::general) != nullptr,
             personal = find(origin, AdapterKind::personal) != nullptr;
  const std::string wish = !o.adapter.empty()    ? o.adapter
                           : general && personal ? "both"
                           : general             ? "general"
                                                 : "personal";
  for (const auto& [kind, there] : {std::pair("general", general), {"personal", personal}})
    if ((wish == kind || wish == "both") && !there)
      throw UserError(
          fmt::format("--adapter {}: there is no {} adapter in {}", wish, kind, joined(o.sources)));
  return wish;
}

PeftOrigin origin_record(const std::string& kind, const AdapterFile& file) {
  return {kind, file.classes, file.base_sha256, file.method, file.round, file.preprocessing};
}

PeftAdapter peft_adapter(const BaseFile& base, const std::string& kind,
                         std::span<const AdapterFile> files, ModuleNames names) {
  return {module_adapters(base, files, names), head_of(files), origin_record(kind, files[0])};
}

// As two named adapters. PEFT has one active classifier: the pair's is in one folder alone, in the
// personal one where a part of it is personal.
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

std::string weights_of(const ExportOptions& o, const Origin& origin) {
  if (!o.weights.empty()) return o.weights;
  if (origin.config && !origin.config->model.weights.empty()) return origin.config->model.weights;
  throw UserError("--weights: name the base model's weights; an adapter file does not hold them");
}

void check_options(const ExportOptions& o) {
  if (o.sources.size() > 2)
    throw UserError(o.sources[2] + ": a third one; give a run's folder, or one or two adapters");
  const bool bundle = !o.bundle.empty();
  if (bundle && (!o.format.empty() || !o.out.empty() || o.concatenate))
    throw UserError("--bundle: takes the place of --format, --concatenate and --out");
  if (!bundle && o.format.empty())
    throw UserError("--format: say peft or merged, or name a folder with --bundle");
  if (!bundle && o.out.empty()) throw UserError("--out: name the folder to write");
  if (o.concatenate && o.format != "peft")
    throw UserError(
        "--concatenate: is for --format peft; merged weights hold both adapters anyway");
}

std::string use_of(const std::string& format, const std::string& which, bool pair,
                   const std::string& out) {
  const std::string here = fs::path(out).filename().string();
  if (format != "peft")
    return fmt::format(
        "orthofed predict --weights {} --input images/ --output out.safetensors "
        "--csv out.csv",
        here);
  if (!pair)
    return fmt::format("model = peft.PeftModel.from_pretrained(base_model, \"{}\")  # {}", here,
                       which);
  return fmt::format(
      "model = peft.PeftModel.from_pretrained(base_model, \"{0}/general\", "
      "adapter_name=\"general\")\n"
      "model.load_adapter(\"{0}/personal\", adapter_name=\"personal\")\n"
      "model.base_model.set_adapter([\"general\", \"personal\"])",
      here);
}

}  // namespace

int export_model(const ExportOptions& o) {
  check_options(o);
  const bool bundle = !o.bundle.empty();
  const std::string out = bundle ? o.bundle : o.out, format = bundle ? "merged" : o.format;
  Origin origin = origin_of(o);
  const std::string which = chosen(o, origin);
  if (o.concatenate && which != "both")
    throw UserError("--concatenate: needs two adapters; say --adapter both");
  std::erase_if(origin.adapters, [&](const AdapterFile& f) {
    return which != "both" && (f.kind == AdapterKind::general) != (which == "general");
  });
  const std::string weights = weights_of(o, origin);
  const std::string config =
      !o.config.empty() || origin.config == std::nullopt ? o.config : origin.config->model.config;
  const BaseFile base = BaseFile::open(weights, config);
  if (bundle && origin.adapters[0].classes.empty())
    throw UserError("--bundle: the adapter does not name its classes");
  if (bundle && !head_of(origin.adapters))
    throw UserError(
        "--bundle: these adapters have no classifier; add the other with --adapter both");

  const bool pair = format == "peft" && which == "both" && !o.concatenate;
  const ModuleNames names =
      o.transformers == 4 ? ModuleNames::transformers4 : ModuleNames::transformers5;
  AtomicFolder folder(out);
  if (format == "merged")
    save_merged(folder.path(), base, origin.adapters);
  else if (pair)
    save_pair(folder.path(), base, origin.adapters, names);
  else
    save_peft(folder.path(), base, peft_adapter(base, which, origin.adapters, names));

  const std::string base_name = fs::path(checkpoint_files(weights).main).filename().string();
  const std::string whose = o.client.empty() ? "" : " of " + o.client;
  const std::string adapters = which == "general"    ? "general adapter"
                               : which == "personal" ? "personal adapter" + whose
                                                     : "general and the personal adapter" + whose;
  ModelCard card;
  card.title = fmt::format("{} with the {}", base_name, adapters);
  card.hub_name = format == "peft" ? "peft" : "timm";
  card.base_name = base_name;
  card.what =
      format == "merged"
          ? fmt::format("Full weights: the base model with the {} merged into it.", adapters)
      : pair ? "Two LoRA adapters for PEFT, `general` and `personal`, to be active together."
             : fmt::format("A LoRA adapter for PEFT: the {}{}.", adapters,
                           which == "both" ? ", concatenated into one" : "");
  card.use = use_of(format, which, pair, out);
  card.summary = origin.summary;
  write_file(folder.path() + "/README.md", to_markdown(card, origin.adapters));
  folder.commit();
  if (o.global.json)
    std::cout << json_object({{"format", json_text(format)},
                              {"adapter", json_text(which)},
                              {"base_sha256", json_text(base.sha256)},
                              {"out", json_text(out)}})
              << "\n";
  else if (!o.global.quiet)
    std::cout << fmt::format("{}: {}\n", out, card.what);
  return 0;
}

}  // namespace orthofed::cli
