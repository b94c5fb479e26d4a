#include "models/base_file.h"

#include <fmt/core.h>

#include "kernels/core/check.h"

namespace orthofed {
namespace {

constexpr const char* kLayers[] = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"};
constexpr const char* kWeight = ".weight";

// The module whose tensor it is: nn.MultiheadAttention calls one "attn.in_proj_weight".
std::string module_of(const std::string& tensor) {
  return tensor.ends_with(kWeight) ? tensor.substr(0, tensor.size() - 7) : tensor;
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

std::vector<ModuleRows> BaseFile::modules_of(const std::string& layer) const {
  const auto sources = architecture.sources.find(layer + kWeight);
  if (sources == architecture.sources.end())
    throw UserError(fmt::format("{}: has no layer '{}'", path, layer));
  std::vector<ModuleRows> modules;
  int64_t begin = 0;
  for (const Source& s : sources->second) {
    modules.push_back({module_of(s.tensor), s.tensor, begin, s.rows});
    begin += s.rows;
  }
  return modules;
}

int64_t BaseFile::inputs_of(const std::string& layer) const {
  return file.tensors.at(modules_of(layer)[0].weight).cols();
}

std::optional<std::string> BaseFile::head() const {
  const std::string& naming = architecture.naming;
  const Pool pool = architecture.config.pool;
  if (naming == "timm" && pool != Pool::two_tokens) return "head";
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
