#include "models/vit/base_file.h"

#include <fmt/core.h>

#include <set>

#include "kernels/core/check.h"
#include "models/vit/families.h"

namespace orthofed {
namespace {

constexpr const char* kLayers[] = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"};
constexpr const char* kWeight = ".weight";

// The module whose tensor it is: nn.MultiheadAttention calls one "attn.in_proj_weight".
std::string module_of(const std::string& tensor) {
  return tensor.ends_with(kWeight) ? tensor.substr(0, tensor.size() - 7) : tensor;
}

std::string prefix_of(const Architecture& a, ModuleNames names) {
  const LiveNames& live = family_named(a.naming).live;
  const char* own = names == ModuleNames::transformers4   ? live.prefix4
                    : names == ModuleNames::transformers5 ? live.prefix5
                                                          : nullptr;
  return own != nullptr ? own : a.prefix;
}

// One module of the file in the library's names: as a rule one there as well.
std::vector<std::string> names_of(const Architecture& a, const std::string& layer,
                                  const std::string& module, ModuleNames names) {
  const std::string block = layer.substr(7, layer.find('.', 7) - 7);  // of "blocks.11.mlp.fc1"
  const auto in_block = [&](std::string pattern) {
    return pattern.replace(pattern.find("{}"), 2, block);
  };
  const std::string bare = module.substr(a.prefix.size()), prefix = prefix_of(a, names);
  std::vector<std::string> live;
  if (names == ModuleNames::transformers5)
    for (const LiveRule& rule : family_named(a.naming).live.rules5)
      if (in_block(rule.file) == bare) live.push_back(prefix + in_block(rule.live));
  if (live.empty()) live.push_back(prefix + bare);
  return live;
}

}  // namespace

BaseFile BaseFile::open(const std::string& weights, const std::string& config) {
  BaseFile base;
  base.path = weights;
  base.file = load_checkpoint(weights);
  base.sha256 = sha256_of_checkpoint(weights);
  base.configs = ConfigFiles::beside(checkpoint_files(weights).main, config);
  TensorShapes shapes;
  for (const auto& [name, tensor] : base.file.tensors) shapes[name] = tensor.shape();
  try {
    base.architecture = recognise(shapes, base.configs);
  } catch (const UserError& error) {
    throw UserError(fmt::format("{}: {}", weights, error.what()));
  }
  return base;
}

std::vector<std::string> BaseFile::layers() const {
  std::vector<std::string> all;
  for (int64_t i = 0; i < architecture.config.depth; ++i)
    for (const char* layer : kLayers) all.push_back(fmt::format("blocks.{}.{}", i, layer));
  return all;
}

std::vector<ModuleRows> BaseFile::modules_of(const std::string& layer, ModuleNames names) const {
  const auto sources = architecture.sources.find(layer + kWeight);
  if (sources == architecture.sources.end())
    throw UserError(fmt::format("{}: has no layer '{}'", path, layer));
  std::vector<ModuleRows> modules;
  int64_t begin = 0;
  for (const Source& s : sources->second) {
    const std::vector<std::string> parts =
        names_of(architecture, layer, module_of(s.tensor), names);
    const int64_t rows = s.rows / int64_t(parts.size());
    for (const std::string& part : parts) {
      modules.push_back({part, s.tensor, begin, rows});
      begin += rows;
    }
  }
  return modules;
}

std::map<std::string, std::pair<std::string, ModuleRows>> BaseFile::known_modules() const {
  const Family& family = family_named(architecture.naming);
  std::set<std::string> prefixes = {architecture.prefix};
  if (architecture.naming.starts_with("hf_")) {
    prefixes.insert(family.prefixes.begin(), family.prefixes.end());
    for (const char* prefix : {family.live.prefix4, family.live.prefix5})
      if (prefix != nullptr) prefixes.insert(prefix);
  }
  std::map<std::string, std::pair<std::string, ModuleRows>> known;
  for (const std::string& layer : layers())
    for (const ModuleNames names :
         {ModuleNames::file, ModuleNames::transformers4, ModuleNames::transformers5})
      for (const ModuleRows& m : modules_of(layer, names)) {
        const std::string bare = m.module.substr(prefix_of(architecture, names).size());
        for (const std::string& prefix : prefixes)
          known.emplace(prefix + bare, std::pair(layer, m));
      }
  return known;
}

int64_t BaseFile::inputs_of(const std::string& layer) const {
  return file.tensors.at(modules_of(layer)[0].weight).cols();
}

std::optional<std::string> BaseFile::head() const {
  const std::string& naming = architecture.naming;
  const Pool pool = architecture.config.pool;
  if (pool == Pool::two_tokens) return std::nullopt;  // theirs is two, of one token each
  if (naming == "timm" || naming == "timm_dinov3") return "head";
  if (naming == "hf_vit" && pool == Pool::token) return "classifier";
  const auto own = architecture.sources.find("head.weight");
  if (own == architecture.sources.end()) return std::nullopt;
  return module_of(own->second[0].tensor);
}

std::string BaseFile::outer() const {
  if (architecture.naming != "hf_vit" || !head()) return "";
  const std::string inner = architecture.config.name == "deit" ? "deit." : "vit.";
  return modules_of("blocks.0.attn.qkv")[0].module.starts_with(inner) ? "" : inner;
}

}  // namespace orthofed
