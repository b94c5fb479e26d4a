#include "models/base_file.h"

#include <fmt/core.h>

#include <filesystem>

#include "kernels/core/check.h"

namespace orthofed {
namespace {

constexpr const char* kLayers[] = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"};

}  // namespace

BaseFile BaseFile::open(const std::string& weights, const std::string& config) {
  BaseFile base;
  base.path = weights;
  base.file = load_checkpoint(weights);
  base.sha256 = sha256_of_checkpoint(weights);
  base.config_path = config;
  if (config.empty()) {
    const auto beside =
        std::filesystem::path(checkpoint_files(weights).main).parent_path() / "config.json";
    if (std::filesystem::exists(beside)) base.config_path = beside.string();
  }
  if (base.depth() == 0)
    throw UserError(
        fmt::format("{}: tensor 'blocks.0.attn.qkv.weight' is missing; a ViT with timm's names is "
                    "expected",
                    weights));
  return base;
}

int64_t BaseFile::depth() const {
  int64_t depth = 0;
  while (file.tensors.contains(fmt::format("blocks.{}.attn.qkv.weight", depth))) ++depth;
  return depth;
}

std::vector<std::string> BaseFile::layers() const {
  std::vector<std::string> all;
  for (int64_t i = 0; i < depth(); ++i)
    for (const char* layer : kLayers) all.push_back(fmt::format("blocks.{}.{}", i, layer));
  return all;
}

std::vector<ModuleRows> BaseFile::modules_of(const std::string& layer) const {
  const auto weight = file.tensors.find(layer + ".weight");
  if (weight == file.tensors.end() || weight->second.rank() != 2)
    throw UserError(fmt::format("{}: has no layer '{}'", path, layer));
  return {{layer, 0, weight->second.rows()}};
}

int64_t BaseFile::inputs_of(const std::string& layer) const {
  return file.tensors.at(modules_of(layer)[0].module + ".weight").cols();
}

std::string BaseFile::head() const {
  return "head";
}

}  // namespace orthofed
