// The fixtures that PyTorch computed for a tiny ViT, and the fine-tuner they belong to.
#pragma once
#include <gtest/gtest.h>

#include "engine/data/loader.h"
#include "engine/io/safetensors.h"
#include "engine/ops/cross_entropy.h"
#include "kernels/simt/memory.h"
#include "models/training/fine_tune.h"
#include "tests/support/files.h"
#include "tests/support/graph.h"

namespace orthofed {
namespace {

using test::elements_agree;

// From here on host code that looks into the emulated device's memory stops the program.
[[maybe_unused]] const bool guarded = [] {
  simt::guard_memory();
  return true;
}();

struct Where {
  DType compute;
  Device device;
};
// Device cuda as well, where a GPU is.
[[maybe_unused]] std::vector<Where> places(std::initializer_list<Where> wanted) {
  std::vector<Where> all;
  for (const Where& w : wanted)
    if (available(w.device)) all.push_back(w);
  return all;
}
[[maybe_unused]] std::string place_name(const testing::TestParamInfo<Where>& info) {
  return std::string(name_of(info.param.compute)) + "_" + name_of(info.param.device);
}

const std::string kFixtures = test::source_dir() + "/tests/fixtures/";

const TensorMap& fixture() {
  static const TensorMap tensors = load_safetensors(kFixtures + "vit_step.safetensors").tensors;
  return tensors;
}

// The tensors under "prefix.", without it.
[[maybe_unused]] TensorMap under(const TensorMap& all, const std::string& prefix) {
  TensorMap part;
  for (const auto& [name, t] : all)
    if (name.starts_with(prefix)) part[name.substr(prefix.size())] = t;
  return part;
}

// timm's names only.
TensorMap weights(bool with_head) {
  TensorMap part;
  for (const auto& [name, t] : fixture())
    for (const char* prefix :
         {"cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.", "head."})
      if (name.starts_with(prefix) && (with_head || !name.starts_with("head."))) part[name] = t;
  return part;
}

Vit make_vit(bool with_head, DType compute, bool trainable) {
  const TensorMap tensors = weights(with_head);
  const ConfigFiles files = ConfigFiles::beside("", kFixtures + "vit_step.json");
  return Vit::from_tensors(recognise(shapes_of(tensors), files), tensors, compute, trainable);
}

[[maybe_unused]] std::unique_ptr<FineTuner> make_tuner(
    DType compute, Device device = Device::cpu, bool adamw = true,
    AdapterStrategy strategy = AdapterStrategy::unmerged) {
  const OnDevice scope(device);
  auto vit = std::make_unique<Vit>(make_vit(false, compute, false));
  FineTuneOptions o;
  o.classes = 5;
  o.lora.strategy = strategy;
  o.lora.rank = 4;
  o.lora.alpha = 8;
  o.lora.personal_rank = 3;
  o.lora.personal_alpha = 6;
  o.penalty.update = 2;
  o.penalty.base = 20;
  o.penalty.subspace = 2;
  o.train.lr = 1e-3;
  o.train.warmup = 0;
  if (!adamw) o.train.optimizer = OptimizerKind::sgd;
  auto tuner = std::make_unique<FineTuner>(std::move(vit), o);
  TensorMap general = under(fixture(), "general.");
  general["head.weight"] = fixture().at("head.weight");
  general["head.bias"] = fixture().at("head.bias");
  tuner->load_general(general);
  tuner->load_personal(under(fixture(), "personal."));
  return tuner;
}

[[maybe_unused]] Batch make_batch(const Tensor& patches, const Tensor& labels,
                                  const Tensor& sample_weights, DType compute) {
  Batch b;
  b.patches = patches.to(compute);
  b.labels = labels;
  b.weights = sample_weights.to(DType::f32).clone();
  b.valid = 0;
  for (double w : sample_weights.to_vector()) b.valid += w > 0;
  return b;
}

}  // namespace
}  // namespace orthofed
