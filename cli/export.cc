#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <optional>

#include "cli/commands.h"
#include "cli/terminal/json.h"
#include "engine/io/files.h"
#include "engine/io/text.h"
#include "federation/report/export.h"
#include "models/adapters/bundle.h"
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

Origin from_run(const ExportArguments& o, const std::string& folder) {
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

Origin origin_of(const ExportArguments& o) {
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
std::string chosen(const ExportArguments& o, const Origin& origin) {
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

std::string weights_of(const ExportArguments& o, const Origin& origin) {
  if (!o.weights.empty()) return o.weights;
  if (origin.config && !origin.config->model.weights.empty()) return origin.config->model.weights;
  throw UserError("--weights: name the base model's weights; an adapter file does not hold them");
}

void check_options(const ExportArguments& o) {
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

// The card's lines of code.
std::string use_of(ExportForm form, const std::string& which, const std::string& out) {
  const std::string here = fs::path(out).filename().string();
  if (form == ExportForm::merged)
    return fmt::format(
        "orthofed predict --weights {} --input images/ --output out.safetensors "
        "--csv out.csv",
        here);
  if (form == ExportForm::peft)
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

int export_command(const ExportArguments& o) {
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

  if (format == "merged" && base.configs.config.empty())
    throw UserError(fmt::format(
        "{}: no config.json beside the weights; name one with --config: the merged model needs it",
        base.path));

  ExportOptions options;
  options.form = format == "merged"                  ? ExportForm::merged
                 : which == "both" && !o.concatenate ? ExportForm::peft_pair
                                                     : ExportForm::peft;
  options.names = o.transformers == 4 ? ModuleNames::transformers4 : ModuleNames::transformers5;
  options.client = o.client;
  options.use = use_of(options.form, which, out);
  options.summary = origin.summary;
  const std::string what = export_adapters(out, base, origin.adapters, options);
  if (o.global.json)
    std::cout << json_object({{"format", json_text(format)},
                              {"adapter", json_text(which)},
                              {"base_sha256", json_text(base.sha256)},
                              {"out", json_text(out)}})
              << "\n";
  else if (!o.global.quiet)
    std::cout << fmt::format("{}: {}\n", out, what);
  return 0;
}

}  // namespace orthofed::cli
