#include "models/adapters/peft.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/io/files.h"
#include "engine/io/safetensors.h"

namespace orthofed {
namespace {

using json = nlohmann::ordered_json;

constexpr const char* kConfig = "adapter_config.json";
constexpr const char* kWeights = "adapter_model.safetensors";
constexpr const char* kPrefix = "base_model.model.";
constexpr const char* kA = ".lora_A.weight";
constexpr const char* kB = ".lora_B.weight";
constexpr const char* kOrigin = "orthofed";  // key of the metadata

std::string in_folder(const std::string& folder, const char* file) {
  return (std::filesystem::path(folder) / file).string();
}

// "encoder.layer.11.attention.query" -> "attention.query": the name without its block.
std::string within_block(const std::string& module) {
  size_t begin = 0, cut = 0;
  while (begin < module.size()) {
    const size_t end = std::min(module.find('.', begin), module.size());
    if (end > begin && module.find_first_not_of("0123456789", begin) >= end) cut = end + 1;
    begin = end + 1;
  }
  return cut < module.size() ? module.substr(cut) : module;
}

bool ends_in(const std::string& module, const std::string& name) {
  return module == name || module.ends_with("." + name);
}

// How PEFT is told the modules: by their names within a block where that means exactly these
// modules and one rank each, by their full names elsewhere.
class Targets {
 public:
  Targets(const BaseFile& base, const std::vector<ModuleAdapter>& modules) {
    std::map<std::string, int64_t> rank_of;
    std::set<std::string> adapted;  // tensors
    for (const ModuleAdapter& m : modules) {
      adapted.insert(m.weight);
      const auto [at, first] = rank_of.emplace(within_block(m.module), m.rank());
      if (!first && at->second != m.rank()) short_ = false;
    }
    const auto leave_alone = [&](const std::string& module) {
      for (const auto& [target, rank] : rank_of)
        if (ends_in(module, target)) short_ = false;
    };
    for (const auto& [name, tensor] : base.file.tensors)
      if (name.ends_with(".weight") && !adapted.contains(name))
        leave_alone(name.substr(0, name.size() - 7));
    for (const auto& [module, of] : base.known_modules())
      if (!adapted.contains(of.second.weight)) leave_alone(module);
  }
  std::string of(const ModuleAdapter& m) const {
    return short_ ? within_block(m.module) : m.module;
  }

 private:
  bool short_ = true;
};

// 16, not 16.0, as people write it.
json number(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15) return int64_t(value);
  return value;
}

json config_of(const BaseFile& base, const PeftAdapter& adapter) {
  // The rank that most modules have is the rule, the others are its exceptions.
  std::map<int64_t, int64_t> count;
  for (const ModuleAdapter& m : adapter.modules) ++count[m.rank()];
  const int64_t rank =
      std::max_element(count.begin(), count.end(), [](const auto& a, const auto& b) {
        return a.second < b.second;
      })->first;
  const Targets targets(base, adapter.modules);
  const double scale = adapter.modules[0].scale;
  json names = json::array(), ranks = json::object(), alphas = json::object();
  std::set<std::string> seen;
  for (const ModuleAdapter& m : adapter.modules) {
    OF_CHECK(m.scale == scale, "one scale for all modules");
    const std::string target = targets.of(m);
    if (!seen.insert(target).second) continue;
    names.push_back(target);
    if (m.rank() == rank) continue;
    ranks[target] = m.rank();
    alphas[target] = number(scale * double(m.rank()));
  }
  return {
      {"peft_type", "LORA"},
      {"task_type", nullptr},
      // A name here would make PEFT ask a hub for it when it saves.
      {"base_model_name_or_path", nullptr},
      {"r", rank},
      {"lora_alpha", number(scale * double(rank))},
      {"target_modules", names},
      {"rank_pattern", ranks},
      {"alpha_pattern", alphas},
      {"modules_to_save",
       adapter.head && base.head() ? json::array({*base.head()}) : json(nullptr)},
      {"lora_dropout", 0.0},
      {"bias", "none"},
      {"fan_in_fan_out", false},
      {"init_lora_weights", true},
      {"use_dora", false},
      {"use_rslora", false},
      {"inference_mode", true},
  };
}

json to_json(const PeftOrigin& o) {
  return {{"kind", o.kind},
          {"classes", o.classes},
          {"base_sha256", o.base_sha256},
          {"method", o.method},
          {"round", o.round},
          {"image_size", o.preprocessing.image_size},
          {"crop_pct", o.preprocessing.crop_pct},
          {"interpolation", o.preprocessing.interpolation}};
}

// Of our own writing; anything else there counts as none.
std::optional<PeftOrigin> origin_of(const std::map<std::string, std::string>& metadata) {
  const auto found = metadata.find(kOrigin);
  if (found == metadata.end()) return std::nullopt;
  try {
    const json j = json::parse(found->second);
    PeftOrigin o;
    j.at("kind").get_to(o.kind);
    j.at("classes").get_to(o.classes);
    j.at("base_sha256").get_to(o.base_sha256);
    j.at("method").get_to(o.method);
    j.at("round").get_to(o.round);
    j.at("image_size").get_to(o.preprocessing.image_size);
    j.at("crop_pct").get_to(o.preprocessing.crop_pct);
    j.at("interpolation").get_to(o.preprocessing.interpolation);
    return o;
  } catch (const json::exception&) {
    return std::nullopt;
  }
}

// ---- Reading ------------------------------------------------------------------------------------

// adapter_config.json, and what is asked of it.
class Config {
 public:
  explicit Config(const std::string& path) : path_(path) {
    try {
      j_ = json::parse(read_text(path));
    } catch (const json::exception&) {
      fail("is not valid JSON; save the adapter again");
    }
    if (!j_.is_object()) fail("must be a JSON object; save the adapter again");
    refuse_what_is_not_supported();
  }

  double scale_of(const std::string& module, int64_t rank) const {
    const int64_t expected = int64_t(of("rank_pattern", "r", module));
    if (expected != rank)
      fail(fmt::format("gives '{}' the rank {}, its lora_A has {} rows; files of two adapters?",
                       module, expected, rank));
    const double scale = of("alpha_pattern", "lora_alpha", module) / double(rank);
    if (!std::isfinite(scale)) fail(fmt::format("the scale of '{}' is not finite", module));
    return scale;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw UserError(fmt::format("{}: {}", path_, what));
  }
  const json* get(const char* key) const {
    const auto found = j_.find(key);
    return found == j_.end() || found->is_null() ? nullptr : &*found;
  }
  bool is_set(const char* key) const {
    const json* v = get(key);
    return v != nullptr && *v != json(false) && !(v->is_array() && v->empty()) &&
           !(v->is_object() && v->empty()) && *v != json("");
  }

  // A number of the pattern that the module's name ends in, or else the key's own.
  double of(const char* patterns, const char* key, const std::string& module) const {
    if (const json* map = get(patterns); map != nullptr) {
      if (!map->is_object()) fail(fmt::format("'{}' must be an object", patterns));
      for (const auto& [name, value] : map->items()) {
        if (name.find_first_of("^$*+?()[]{}|\\") != std::string::npos)
          fail(
              fmt::format("'{}' holds the regular expression '{}', which is not supported; write "
                          "the modules' names",
                          patterns, name));
        if (!value.is_number()) fail(fmt::format("{}['{}'] must be a number", patterns, name));
        if (ends_in(module, name)) return value.get<double>();
      }
    }
    const json* value = get(key);
    if (value == nullptr || !value->is_number()) fail(fmt::format("'{}' must be a number", key));
    return value->get<double>();
  }

  void refuse_what_is_not_supported() const {
    const json* type = get("peft_type");
    if (type == nullptr || *type != json("LORA"))
      fail(fmt::format("peft_type is {}; only LORA is supported",
                       type == nullptr ? "missing" : type->dump()));
    if (is_set("use_dora"))
      fail(
          "use_dora: DoRA is not supported; train without it, or merge it into the base model "
          "with PEFT (merge_and_unload)");
    if (is_set("use_rslora"))
      fail(
          "use_rslora: rank-stabilised LoRA (s = alpha / sqrt(r)) is not supported; set use_rslora "
          "to false and multiply lora_alpha by sqrt(r): it is the same adapter");
    if (const json* bias = get("bias"); bias != nullptr && *bias != json("none"))
      fail(fmt::format("bias is {}: trained biases are not supported; train with bias=\"none\"",
                       bias->dump()));
    if (const json* init = get("init_lora_weights"); init != nullptr && init->is_string()) {
      const auto& name = init->get_ref<const std::string&>();
      if (name != "gaussian" && name != "eva" && name != "orthogonal")
        fail(
            fmt::format("init_lora_weights is '{}', which changes the base weights; save with "
                        "PEFT's path_initial_model_for_weight_conversion",
                        name));
    }
    // Options of any version: those that do not change what an adapter computes, and those above.
    static const std::set<std::string> harmless = {"peft_type",
                                                   "task_type",
                                                   "base_model_name_or_path",
                                                   "revision",
                                                   "auto_mapping",
                                                   "peft_version",
                                                   "inference_mode",
                                                   "r",
                                                   "lora_alpha",
                                                   "lora_dropout",
                                                   "bias",
                                                   "target_modules",
                                                   "exclude_modules",
                                                   "modules_to_save",
                                                   "init_lora_weights",
                                                   "layers_to_transform",
                                                   "layers_pattern",
                                                   "rank_pattern",
                                                   "alpha_pattern",
                                                   "loftq_config",
                                                   "eva_config",
                                                   "corda_config",
                                                   "lora_ga_config",
                                                   "runtime_config",
                                                   "megatron_core",
                                                   "qalora_group_size",
                                                   "ensure_weight_tying"};
    for (const auto& [key, value] : j_.items())
      if (!harmless.contains(key) && is_set(key.c_str()))
        fail(
            fmt::format("'{}' is {}, which is not supported; train without it", key, value.dump()));
  }

  std::string path_;
  json j_;
};

// "base_model.model.blocks.0.attn.qkv.lora_A.weight" without its two ends; empty if it has others.
std::string module_of(const std::string& key, const std::string& end) {
  const std::string prefix = kPrefix;
  if (!key.starts_with(prefix) || !key.ends_with(end) || key.size() < prefix.size() + end.size())
    return "";
  return key.substr(prefix.size(), key.size() - prefix.size() - end.size());
}

}  // namespace

void save_peft(const std::string& folder, const BaseFile& base, const PeftAdapter& adapter) {
  const std::string prefix = kPrefix + base.outer();
  TensorMap tensors;
  for (const ModuleAdapter& m : adapter.modules) {
    // nn.MultiheadAttention calls no module for either: PEFT adapts both or none, at one rank, and
    // leaves an adapter of out_proj alone without effect (peft/tuners/lora/layer.py).
    if (base.architecture.naming == "open_clip" && m.weight.find(".attn.") != std::string::npos)
      throw UserError(fmt::format(
          "{}: '{}' is a parameter of nn.MultiheadAttention, which PEFT adapts as a whole or not "
          "at all; train with targets fc1 and fc2, or export merged weights",
          base.path, m.weight));
    tensors[prefix + m.module + kA] = m.a;
    tensors[prefix + m.module + kB] = m.b;
  }
  if (adapter.head && base.head()) {
    tensors[kPrefix + *base.head() + ".weight"] = adapter.head->weight;
    tensors[kPrefix + *base.head() + ".bias"] = adapter.head->bias;
  } else if (adapter.head) {
    save_safetensors(in_folder(folder, kHeadFile),
                     {{"weight", adapter.head->weight}, {"bias", adapter.head->bias}},
                     {{"format", "pt"}});
  }
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  if (adapter.origin) metadata[kOrigin] = to_json(*adapter.origin).dump();
  save_safetensors(in_folder(folder, kWeights), tensors, metadata);
  write_file(in_folder(folder, kConfig), config_of(base, adapter).dump(2) + "\n");
}

PeftAdapter load_peft(const std::string& folder, const BaseFile& base) {
  require_directory(folder, "the adapter's folder");
  for (const char* file : {kConfig, kWeights})
    if (!std::filesystem::exists(in_folder(folder, file)))
      throw UserError(
          fmt::format("{}: holds no {}; give the folder that PEFT's save_pretrained wrote (an "
                      "adapter_model.bin is converted by loading and saving it with PEFT)",
                      folder, file));
  const Config config(in_folder(folder, kConfig));
  const std::string path = in_folder(folder, kWeights);
  const Safetensors file = load_safetensors(path);
  PeftAdapter adapter;
  adapter.origin = origin_of(file.metadata);
  Tensor head_weight, head_bias;
  for (const auto& [key, tensor] : file.tensors) {
    if (!tensor.all_finite())
      throw UserError(fmt::format("{}: '{}' holds NaN or infinity", path, key));
    if (std::string module = module_of(key, kA); !module.empty()) {
      const auto b = file.tensors.find(kPrefix + module + kB);
      if (b == file.tensors.end())
        throw UserError(fmt::format("{}: '{}{}{}' is missing", path, kPrefix, module, kB));
      if (tensor.rank() != 2 || tensor.rows() == 0)
        throw UserError(fmt::format("{}: '{}' has shape {}, expected [r, in]", path, key,
                                    tensor.shape().str()));
      adapter.modules.push_back({module, tensor.to(DType::f32), b->second.to(DType::f32),
                                 config.scale_of(module, tensor.rows()), ""});
    } else if (const std::string other = module_of(key, kB); !other.empty()) {
      if (!file.tensors.contains(kPrefix + other + kA))
        throw UserError(fmt::format("{}: '{}{}{}' is missing", path, kPrefix, other, kA));
    } else if (base.head() && module_of(key, ".weight") == *base.head()) {
      head_weight = tensor;
    } else if (base.head() && module_of(key, ".bias") == *base.head()) {
      head_bias = tensor;
    } else {
      throw UserError(
          base.head()
              ? fmt::format("{}: '{}' is neither a LoRA weight nor the classifier '{}'; train with "
                            "modules_to_save=[\"{}\"] alone",
                            path, key, *base.head(), *base.head())
              : fmt::format("{}: '{}' is no LoRA weight; train without modules_to_save", path,
                            key));
    }
  }
  if (const std::string own = in_folder(folder, kHeadFile);
      !head_weight.defined() && std::filesystem::exists(own)) {
    const TensorMap tensors = load_safetensors(own).tensors;
    if (const auto w = tensors.find("weight"); w != tensors.end()) head_weight = w->second;
    if (const auto b = tensors.find("bias"); b != tensors.end()) head_bias = b->second;
  }
  if (adapter.modules.empty()) throw UserError(fmt::format("{}: holds no LoRA weights", path));
  if (head_weight.defined() != head_bias.defined())
    throw UserError(fmt::format("{}: the classifier's weight and bias must both be there", path));
  if (head_weight.defined()) {
    if (head_weight.rank() != 2 || head_bias.rank() != 1 || head_weight.rows() != head_bias.size())
      throw UserError(fmt::format("{}: the classifier's weight is {}, its bias {}", path,
                                  head_weight.shape().str(), head_bias.shape().str()));
    adapter.head = HeadTensors{head_weight.to(DType::f32), head_bias.to(DType::f32)};
  }
  return adapter;
}

}  // namespace orthofed
