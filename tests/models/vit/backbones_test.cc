// Every family against what PyTorch computes (tests/fixtures/backbones): features at three image
// sizes, logits or image embedding, one LoRA step's gradients; and how a file is recognised.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "engine/data/loader.h"
#include "engine/io/safetensors.h"
#include "models/scoring/predict.h"
#include "models/training/fine_tune.h"
#include "tests/support/files.h"
#include "tests/support/graph.h"

namespace orthofed {
namespace {

using test::relative_norm;
using test::user_error;

const std::string kFolder = test::source_dir() + "/tests/fixtures/backbones/";

struct Known {
  const char* folder;
  const char* naming;
  PositionRule positions;
};
void PrintTo(const Known& known, std::ostream* os) {
  *os << known.folder;
}
constexpr Known kFamilies[] = {
    {"timm_deit_distilled", "timm", PositionRule::antialias},
    {"timm_average", "timm", PositionRule::antialias},
    {"timm_registers", "timm", PositionRule::antialias},
    {"timm_clip", "timm", PositionRule::antialias},
    {"timm_siglip", "timm", PositionRule::antialias},
    {"timm_swiglu", "timm", PositionRule::antialias},
    {"timm_dinov3", "timm_dinov3", PositionRule::rotary},
    {"timm_dinov3_gated", "timm_dinov3", PositionRule::rotary},
    {"dinov2", "dinov2", PositionRule::offset},
    {"dinov2_registers", "dinov2", PositionRule::antialias},
    {"open_clip", "open_clip", PositionRule::antialias},
    {"open_clip_quick", "open_clip", PositionRule::antialias},
    {"open_clip_timm", "open_clip_timm", PositionRule::antialias},
    {"hf_vit", "hf_vit", PositionRule::plain},
    {"hf_deit", "hf_vit", PositionRule::plain},
    {"hf_dinov2", "hf_dinov2", PositionRule::plain},
    {"hf_dinov2_swiglu", "hf_dinov2", PositionRule::plain},
    {"hf_dinov2_classifier", "hf_dinov2", PositionRule::plain},
    {"hf_dinov2_with_registers", "hf_dinov2_with_registers", PositionRule::antialias},
    {"hf_dinov3_vit", "hf_dinov3_vit", PositionRule::rotary},
    {"hf_dinov3_vit_gated", "hf_dinov3_vit", PositionRule::rotary},
    {"hf_clip_vision_model", "hf_clip", PositionRule::plain},
    {"hf_clip", "hf_clip", PositionRule::plain},
    {"hf_siglip_vision_model", "hf_siglip", PositionRule::plain},
};

Vit load(const std::string& folder, DType compute, int64_t image_size = 0) {
  return Vit::load(kFolder + folder + "/model.safetensors", "", compute, image_size);
}
TensorMap expected(const std::string& folder) {
  return load_safetensors(kFolder + folder + "/expected.safetensors").tensors;
}

// The fixtures' two images, normalised as the model's configuration says.
Tensor patches(const Vit& model) {
  static const TensorMap inputs = load_safetensors(kFolder + "inputs.safetensors").tensors;
  const int64_t size = model.config.image_size, bytes = size * size * 3;
  const Tensor all = inputs.at("images." + std::to_string(size)).contiguous().reshape({2 * bytes});
  std::vector<Tensor> images;
  for (int64_t i = 0; i < 2; ++i) {
    const uint8_t* first = all.data<uint8_t>() + i * bytes;
    images.push_back(
        Tensor::of(std::vector<uint8_t>(first, first + bytes), {bytes}).reshape({size, size, 3}));
  }
  return to_patches(images, model);
}

class Backbones : public testing::TestWithParam<Known> {};

TEST_P(Backbones, FeaturesAndOutputsAgree) {
  const TensorMap want = expected(GetParam().folder);
  for (const int64_t size : {int64_t(0), int64_t(24), int64_t(12)}) {
    const Vit model = load(GetParam().folder, DType::f32, size);
    EXPECT_EQ(model.config.positions, GetParam().positions);
    ASSERT_EQ(model.config.image_size, size > 0 ? size : 16);
    Tape tape(false);
    const Var f = model.features(tape, patches(model), 2);
    EXPECT_LE(
        relative_norm(f.value(), want.at("features." + std::to_string(model.config.image_size))),
        1e-4)
        << size;
    if (size > 0) continue;
    EXPECT_EQ(model.has_head(), want.contains("logits"));
    if (model.has_head()) {
      EXPECT_LE(relative_norm(model.logits(tape, f).value(), want.at("logits")), 1e-4);
    }
    EXPECT_EQ(model.config.projection > 0, want.contains("embedding"));
    if (model.config.projection > 0) {
      EXPECT_LE(relative_norm(model.embedding(tape, f).value(), want.at("embedding")), 1e-4);
    }
  }
}

class BackboneSteps : public testing::TestWithParam<std::tuple<Known, Device>> {};

TEST_P(BackboneSteps, GradientsAgree) {
  const auto [known, device] = GetParam();
  if (!available(device)) GTEST_SKIP() << "no device " << name_of(device);
  const TensorMap want = expected(known.folder);
  const OnDevice scope(device);
  FineTuneOptions options;
  options.personal = false;
  options.classes = 3;
  options.lora.rank = 2;
  options.lora.alpha = 4;
  FineTuner tuner(std::make_unique<Vit>(load(known.folder, DType::f32)), options);
  TensorMap start;
  for (const auto& [name, t] : want)
    if (name.starts_with("lora.") && name != "lora.loss") start[name.substr(5)] = t;
  tuner.load_general(start);

  Batch batch;
  batch.patches = patches(tuner.model());
  const std::vector<int32_t> labels = {2, 0};
  batch.labels = Tensor::of(labels, {2}).on(Device::cpu);
  batch.weights = Tensor::full({2}, DType::f32, 1).on(Device::cpu);
  batch.valid = 2;
  const StepResult r = tuner.gradients({&batch}, 1, Phase::joint, 0);
  EXPECT_NEAR(r.loss, want.at("lora.loss").item(), 1e-4);
  int compared = 0;
  for (const Var& v : tuner.parameters(AdapterKind::general).parameters()) {
    const std::vector<double> got = v.grad().to_vector(),
                              w = want.at("grad." + v.name()).to_vector();
    ASSERT_EQ(got.size(), w.size()) << v.name();
    double error = 0, norm = 0;
    for (size_t i = 0; i < w.size(); ++i) {
      error += std::pow(got[i] / 2 - w[i], 2);  // ours is the sum over two images
      norm += w[i] * w[i];
    }
    EXPECT_GT(norm, 0) << v.name();
    EXPECT_TRUE(std::sqrt(error) <= 1e-3 * std::sqrt(norm)) << v.name();
    ++compared;
  }
  EXPECT_EQ(compared, 2 * 4 * 2 + 2);  // A and B of 4 targets in 2 blocks, and the head
}

TEST_P(Backbones, IsRecognised) {
  const std::string weights = kFolder + GetParam().folder + "/model.safetensors";
  const TensorShapes shapes = shapes_of(load_safetensors(weights).tensors);
  const ConfigFiles files = ConfigFiles::beside(weights, "");
  const Architecture a = recognise(shapes, files);
  EXPECT_EQ(a.naming, GetParam().naming);
  // Every tensor of the file has exactly one place.
  std::multiset<std::string> placed;
  for (const auto& [ours, sources] : a.sources)
    for (const Source& s : sources)
      if (!s.tensor.empty()) placed.insert(s.tensor);
  for (const Remark& r : a.unused) placed.insert(r.tensor);
  for (const auto& [name, shape] : shapes) EXPECT_EQ(placed.count(name), 1u) << name;
  EXPECT_EQ(placed.size(), shapes.size());

  // One more, one fewer, one of another shape: each is named.
  TensorShapes wrong = shapes;
  const std::string part = a.sources.at("blocks.1.mlp.fc2.weight").front().tensor;
  const std::string stranger = part + ".stranger";
  wrong[stranger] = {3};
  EXPECT_TRUE(user_error([&] { recognise(wrong, files); }, {stranger, a.family}));
  wrong = shapes;
  wrong.erase(part);
  EXPECT_TRUE(user_error([&] { recognise(wrong, files); }, {part, "missing"}));
  wrong = shapes;
  wrong[part] = {7, 16};
  EXPECT_TRUE(user_error([&] { recognise(wrong, files); }, {part, "[7, 16]", "expected"}));
}

std::string family_name(const Known& known) {
  return known.folder;
}
INSTANTIATE_TEST_SUITE_P(All, Backbones, testing::ValuesIn(kFamilies),
                         [](const auto& p) { return family_name(p.param); });
INSTANTIATE_TEST_SUITE_P(Cpu, BackboneSteps,
                         testing::Combine(testing::ValuesIn(kFamilies),
                                          testing::Values(Device::cpu)),
                         [](const auto& p) { return family_name(std::get<0>(p.param)); });
// One of each kind of block on a GPU, emulated and real.
constexpr Known kOnDevices[] = {{"timm_average", "", {}},
                                {"timm_siglip", "", {}},
                                {"timm_swiglu", "", {}},
                                {"hf_dinov3_vit", "", {}},
                                {"hf_clip_vision_model", "", {}}};
INSTANTIATE_TEST_SUITE_P(Gpu, BackboneSteps,
                         testing::Combine(testing::ValuesIn(kOnDevices),
                                          testing::Values(Device::simt, Device::cuda)),
                         [](const auto& p) {
                           return family_name(std::get<0>(p.param)) + "_" +
                                  name_of(std::get<1>(p.param));
                         });

TEST(Architecture, ModulesOfALayer) {
  const auto modules = [](const std::string& folder, const std::string& layer) {
    const std::string weights = kFolder + folder + "/model.safetensors";
    return recognise(shapes_of(load_safetensors(weights).tensors), ConfigFiles::beside(weights, ""))
        .modules_of(layer);
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(modules("timm_swiglu", "blocks.1.attn.qkv"), Names{"blocks.1.attn.qkv"});
  EXPECT_EQ(modules("timm_swiglu", "blocks.1.attn.q"), Names{});
  const std::string hf = "vit.encoder.layer.1.attention.attention.";
  EXPECT_EQ(modules("hf_vit", "blocks.1.attn.qkv"),
            (Names{hf + "query", hf + "key", hf + "value"}));
  EXPECT_EQ(modules("hf_vit", "blocks.1.attn.v"), Names{hf + "value"});
  EXPECT_EQ(modules("hf_dinov3_vit_gated", "blocks.0.mlp.fc1"),
            (Names{"layer.0.mlp.gate_proj", "layer.0.mlp.up_proj"}));
  EXPECT_EQ(modules("hf_vit", "blocks.9.attn.qkv"), Names{});
}

// No transformer at all: the first tensor that is out of place, and what comes nearest.
TEST(Architecture, AnotherKindOfNetworkIsRefused) {
  const TensorShapes resnet = {{"conv1.weight", {64, 3, 7, 7}},
                               {"bn1.weight", {64}},
                               {"layer1.0.conv1.weight", {64, 64, 3, 3}},
                               {"fc.weight", {1000, 512}}};
  EXPECT_TRUE(
      user_error([&] { recognise(resnet, {}); }, {"'bn1.weight'", "nearest", "not supported"}));
  EXPECT_TRUE(user_error([&] { recognise({}, {}); }, {"nearest", "not supported"}));
}

TEST(Architecture, WhatOnlyTheConfigurationKnows) {
  const std::string weights = kFolder + "hf_dinov2/model.safetensors";
  const TensorShapes shapes = shapes_of(load_safetensors(weights).tensors);
  ConfigFiles files = ConfigFiles::beside(weights, "");
  const VitConfig c = recognise(shapes, files).config;
  EXPECT_EQ(c.heads, 2);
  EXPECT_EQ(c.grid, 6);
  EXPECT_EQ(c.image_size, 16);
  EXPECT_EQ(c.interpolation, "bicubic");
  EXPECT_EQ(int64_t(16 / c.crop_pct), 18);  // the shorter side before the middle is cut out
  EXPECT_FLOAT_EQ(c.mean[0], 0.485f);

  files.preprocessor = R"({"size": {"shortest_edge": 16}, "do_center_crop": true, "resample": 2,
                           "crop_size": 16, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]})";
  const VitConfig d = recognise(shapes, files).config;
  EXPECT_EQ(d.interpolation, "bilinear");
  EXPECT_LT(d.crop_pct, 1);  // CLIP's: the shorter side and the middle, no squashing
  EXPECT_EQ(int64_t(16 / d.crop_pct), 16);
  files.preprocessor = R"({"resample": 0})";
  EXPECT_TRUE(user_error([&] { recognise(shapes, files); }, {"resample", "preprocessor_config"}));
  files.preprocessor.clear();
  files.config = R"({"hidden_act": "relu", "num_attention_heads": 2})";
  EXPECT_TRUE(user_error([&] { recognise(shapes, files); }, {"relu", "config.json"}));
  files.config = R"({"num_attention_heads": 3})";
  EXPECT_TRUE(user_error([&] { recognise(shapes, files); }, {"num_heads = 3", "16"}));
  files.config.clear();
  EXPECT_TRUE(user_error([&] { recognise(shapes, files); }, {"no config.json", "heads"}));
}

TEST(Architecture, WhatIsLeftAsideIsSaid) {
  const Vit plain = load("hf_vit", DType::f32), clip = load("hf_clip", DType::f32),
            dino = load("hf_dinov2", DType::f32);
  EXPECT_EQ(left_aside(plain.unused), "");
  EXPECT_EQ(left_aside(dino.unused),
            "left aside: 1 tensor: of masked pretraining alone (embeddings.mask_token)");
  const std::string said = left_aside(clip.unused);
  EXPECT_TRUE(said.starts_with("left aside: 1 tensor: of the contrastive loss (logit_scale); "));
  EXPECT_NE(said.find("of the text tower (text_model."), std::string::npos) << said;
}

TEST(Vit, ImageSizeIsAMultipleOfThePatch) {
  EXPECT_TRUE(user_error([] { load("hf_vit", DType::f32, 18); }, {"18", "patch", "4"}));
}

}  // namespace
}  // namespace orthofed
