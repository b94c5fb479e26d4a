#include <fmt/core.h>

#include <filesystem>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "cli/commands.h"
#include "cli/terminal/units.h"
#include "engine/io/checkpoint.h"
#include "engine/io/files.h"
#include "engine/io/text.h"
#include "models/adapters/bundle.h"
#include "models/vit/architecture.h"

namespace orthofed::cli {
namespace {

namespace fs = std::filesystem;
using json = nlohmann::ordered_json;

constexpr const char* kA = ".lora_A.weight";

// "5,717,416"
std::string grouped(int64_t n) {
  std::string digits = std::to_string(n);
  for (int64_t at = int64_t(digits.size()) - 3; at > 0; at -= 3) digits.insert(size_t(at), 1, ',');
  return digits;
}

int64_t file_bytes(const std::vector<std::string>& paths) {
  int64_t bytes = 0;
  for (const std::string& path : paths) bytes += int64_t(fs::file_size(path));
  return bytes;
}

// What every safetensors file has: tensors, elements, dtypes.
void put_tensors(json& out, const TensorMap& tensors) {
  std::map<std::string, int64_t> dtypes;
  int64_t elements = 0;
  for (const auto& [name, t] : tensors) {
    ++dtypes[name_of(t.dtype())];
    elements += t.size();
  }
  out["tensors"] = tensors.size();
  out["parameters"] = elements;
  out["dtypes"] = dtypes;
}

// What adapts what, by the ends of the modules' names: {"attn.qkv": [8]}, the ranks that occur.
json targets_of(const TensorMap& tensors) {
  std::map<std::string, std::set<int64_t>> ranks;
  for (const auto& [name, t] : tensors) {
    if (!name.ends_with(kA)) continue;
    std::string module = name.substr(0, name.size() - std::string(kA).size());
    for (size_t at = 0; (at = module.find_first_of("0123456789", at)) != std::string::npos; ++at) {
      const size_t end = module.find_first_not_of("0123456789", at);
      if (end != std::string::npos && module[end] == '.' && (at == 0 || module[at - 1] == '.')) {
        module = module.substr(end + 1);
        break;
      }
    }
    ranks[module].insert(t.rows());
  }
  json out = json::object();
  for (const auto& [module, set] : ranks) out[module] = set;
  return out;
}

json head_of_file(const TensorMap& tensors) {
  for (const auto& [name, t] : tensors)
    if (name.ends_with("head.weight") || name.ends_with("classifier.weight")) return t.rows();
  return nullptr;
}

json inspect_adapter(const std::string& path) {
  const AdapterFile file = load_adapter(path);
  json out = {{"what", "adapter"},
              {"files", {path}},
              {"bytes", file_bytes({path})},
              {"kind", name_of(file.kind)},
              {"method", file.method},
              {"rounds", file.round},
              {"scale", file.scale},
              {"targets", targets_of(file.tensors)},
              {"classes", file.classes},
              {"head_classes", head_of_file(file.tensors)},
              {"base_sha256", file.base_sha256}};
  put_tensors(out, file.tensors);
  return out;
}

json inspect_peft(const std::string& folder) {
  const std::string config_path = folder + "/adapter_config.json",
                    path = folder + "/adapter_model.safetensors";
  json config;
  try {
    config = json::parse(read_text(config_path));
  } catch (const json::exception&) {
    throw UserError(fmt::format("{}: is not valid JSON", config_path));
  }
  if (!config.is_object()) throw UserError(fmt::format("{}: must be a JSON object", config_path));
  const TensorMap tensors = load_safetensors(path).tensors;
  json out = {
      {"what", "PEFT adapter"}, {"files", {config_path, path}}, {"bytes", file_bytes({path})}};
  for (const char* key : {"peft_type", "r", "lora_alpha", "use_dora", "use_rslora", "bias"})
    out[key] = config.value(key, json(nullptr));
  out["targets"] = targets_of(tensors);
  out["head_classes"] = head_of_file(tensors);
  put_tensors(out, tensors);
  return out;
}

json inspect_weights(const std::string& path, const std::string& config) {
  const CheckpointFiles files = checkpoint_files(path);
  const Safetensors file = load_checkpoint(path);
  json out = {{"what", "weights"}, {"files", files.shards}, {"bytes", file_bytes(files.shards)}};
  put_tensors(out, file.tensors);
  out["sha256"] = sha256_of_checkpoint(path);
  TensorShapes shapes;
  for (const auto& [name, tensor] : file.tensors) shapes[name] = tensor.shape();
  const Architecture a = examine(shapes, ConfigFiles::beside(files.main, config));
  const bool fits = a.mismatches.empty();
  out[fits ? "family" : "nearest_family"] = a.family;
  out["names"] = a.naming;
  if (fits) {
    const VitConfig& c = a.config;
    out["geometry"] = {{"image_size", c.image_size}, {"patch", c.patch},
                       {"tokens", c.tokens()},       {"width", c.dim},
                       {"blocks", c.depth},          {"heads", c.heads},
                       {"mlp_width", c.mlp_dim},     {"features", c.feature_dim()},
                       {"classes", c.classes}};
    out["input"] = {{"mean", c.mean},
                    {"std", c.std},
                    {"interpolation", c.interpolation},
                    {"crop_pct", c.crop_pct}};
    out["positions"] = name_of(c.positions);
  }
  if (!a.unused.empty()) out["left_aside"] = left_aside(a.unused);
  out["does_not_fit"] = json::array();
  for (const Remark& r : a.mismatches)
    out["does_not_fit"].push_back(fmt::format("'{}' {}", r.tensor, r.text));
  if (const auto names = label_names(path, config); !names.empty()) out["class_names"] = names;
  return out;
}

// One line per key; lists and objects are written "a, b" and "a 1, b 2".
std::string as_line(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_integer()) return grouped(value.get<int64_t>());
  if (value.is_number_float()) return fmt::format("{:.6g}", value.get<double>());
  if (!value.is_structured()) return value.is_null() ? "-" : value.dump();
  std::vector<std::string> parts;
  for (const auto& [key, item] : value.items()) {
    const std::string text = item.is_number_integer() ? item.dump() : as_line(item);
    parts.push_back(value.is_object() ? key + " " + text : text);
  }
  return joined(parts);
}

std::string as_text(const json& report) {
  constexpr size_t kShown = 20;  // of the tensors that do not fit
  size_t width = 0;
  for (const auto& [key, value] : report.items()) width = std::max(width, key.size());
  std::string text;
  const auto line = [&](std::string label, const std::string& value) {
    std::replace(label.begin(), label.end(), '_', ' ');
    text += fmt::format("{:{}}  {}\n", label, width, value);
  };
  for (const auto& [key, value] : report.items()) {
    if (key == "bytes") {
      line(key, format_bytes(value.get<double>()));
    } else if (key == "does_not_fit") {
      for (size_t i = 0; i < std::min(value.size(), kShown); ++i)
        line(i == 0 ? key : "", as_line(value[i]));
      if (value.size() > kShown)
        line("", fmt::format("and {} more; --json lists all", value.size() - kShown));
    } else {
      line(key, as_line(value));
    }
  }
  return text;
}

}  // namespace

int inspect_command(const InspectArguments& o) {
  json report;
  if (fs::exists(fs::path(o.path) / "adapter_config.json")) {
    report = inspect_peft(o.path);
  } else {
    const Safetensors file = load_checkpoint(o.path);
    const auto format = file.metadata.find("format");
    const bool adapter =
        format != file.metadata.end() && format->second.starts_with("orthofed-adapter/");
    report = adapter ? inspect_adapter(checkpoint_files(o.path).main)
                     : inspect_weights(o.path, o.config);
  }
  std::cout << (o.global.json ? report.dump() + "\n" : as_text(report));
  const auto misfits = report.find("does_not_fit");
  if (misfits != report.end() && !misfits->empty())
    throw UserError(fmt::format("{}: {}; the nearest family is {}", o.path, as_line((*misfits)[0]),
                                as_line(report.at("nearest_family"))));
  return 0;
}

}  // namespace orthofed::cli
