// Adapters on their way to PEFT's folders, into full weights, and back: in numbers, on a tiny
// model. That PEFT itself reads and writes the same is scripts/peft_roundtrip.py's to show.
#include "models/adapters/peft.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "engine/io/files.h"
#include "models/adapters/bundle.h"
#include "models/scoring/predict.h"
#include "models/training/demo_base.h"
#include "tests/support/files.h"
#include "tests/support/graph.h"

namespace orthofed {
namespace {

using nlohmann::json;
using test::relative_norm;
using test::TemporaryDirectory;
using test::user_error;
using Strings = std::vector<std::string>;

const char* const kKey = "base_model.model.blocks.0.attn.qkv.lora_A.weight";

class Interchange : public testing::Test {
 protected:
  Interchange() {
    const VitConfig c{
        .image_size = 16, .patch = 8, .dim = 12, .depth = 2, .heads = 3, .mlp_dim = 24};
    weights_ = save_base(Vit::create(c, DType::f32, 1), dir_ / "base");
    base_ = BaseFile::open(weights_, "");
  }

  // As a run leaves it: random A, B and head.
  AdapterFile adapter(AdapterKind kind, const Strings& targets, int64_t rank, double scale,
                      bool with_head = true, const std::vector<int64_t>& layers = {}) {
    auto model = std::make_unique<Vit>(Vit::load(weights_, "", DType::f32));
    LoraConfig lora;
    lora.rank = lora.personal_rank = rank;
    lora.targets = targets;
    lora.layers = layers;
    attach_adapters(*model, lora, kind);
    AdapterFile file{kind,   scale, {"red", "green", "blue"},     base_.sha256,
                     "opal", 3,     adapter_tensors(*model, kind)};
    const std::string prefix = kind == AdapterKind::general ? "" : "personal_";
    if (with_head) {
      file.tensors[prefix + "head.weight"] = Tensor::zeros({3, 12}, DType::f32);
      file.tensors[prefix + "head.bias"] = Tensor::zeros({3}, DType::f32);
    }
    uint64_t seed = kind == AdapterKind::general ? 10 : 20;
    for (auto& [name, t] : file.tensors) {
      const Philox rng{seed++};
      for (int64_t r = 0; r < t.rows(); ++r)
        for (int64_t c = 0; c < t.cols(); ++c)
          t.row<float>(r)[c] = float(0.3 * normal(rng, uint64_t(r * t.cols() + c)));
    }
    return file;
  }

  // Logits of three images under adapter files, or of full weights.
  Tensor logits(const std::string& weights, const std::vector<AdapterFile>& adapters) {
    Strings paths;
    for (const AdapterFile& file : adapters) {
      paths.push_back(dir_ / ("adapter" + std::to_string(paths.size())));
      save_adapter(paths.back(), file);
    }
    const Predictor predictor(std::make_unique<Vit>(Vit::load(weights, "", DType::f32)), paths);
    std::vector<Tensor> images;
    for (uint64_t seed : {1, 2, 3}) {
      std::vector<uint8_t> pixels(16 * 16 * 3);
      for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = uint8_t(Philox{seed}(i)[0]);
      images.push_back(Tensor::of(pixels, {16 * 16 * 3}).reshape({16, 16, 3}));
    }
    return predictor.predict(to_patches(images, predictor.model()), 3).logits;
  }

  PeftAdapter peft(const std::vector<AdapterFile>& files) const {
    return {module_adapters(base_, files), head_of(files), std::nullopt};
  }
  std::string saved(const PeftAdapter& adapter) {
    make_directories(dir_ / "peft");
    save_peft(dir_ / "peft", base_, adapter);
    return dir_ / "peft";
  }
  json config() const { return json::parse(read_text(dir_ / "peft/adapter_config.json")); }
  // What was saved and loaded again, as one general adapter of ours.
  AdapterFile back(const std::string& folder) const {
    const PeftAdapter loaded = load_peft(folder, base_);
    const SliceAdapters slices = slice_adapters(base_, loaded.modules);
    AdapterFile file{AdapterKind::general, slices.scale, {}, base_.sha256, "", 0, slices.tensors};
    if (loaded.head) {
      file.tensors["head.weight"] = loaded.head->weight;
      file.tensors["head.bias"] = loaded.head->bias;
    }
    return file;
  }
  // Folder "peft" with its configuration or its tensors spoilt.
  testing::AssertionResult refused(const std::function<void(json&)>& spoil,
                                   std::initializer_list<std::string> parts) {
    saved(peft({adapter(AdapterKind::general, {"qkv", "fc1"}, 2, 2)}));
    json j = config();
    spoil(j);
    write_file(dir_ / "peft/adapter_config.json", j.dump());
    return user_error([&] { load_peft(dir_ / "peft", base_); }, parts);
  }
  testing::AssertionResult tensors_refused(const std::function<void(TensorMap&)>& spoil,
                                           std::initializer_list<std::string> parts) {
    saved(peft({adapter(AdapterKind::general, {"qkv", "fc1"}, 2, 2)}));
    TensorMap tensors = load_safetensors(dir_ / "peft/adapter_model.safetensors").tensors;
    spoil(tensors);
    save_safetensors(dir_ / "peft/adapter_model.safetensors", tensors);
    return user_error([&] { slice_adapters(base_, load_peft(dir_ / "peft", base_).modules); },
                      parts);
  }

  TemporaryDirectory dir_;
  std::string weights_;
  BaseFile base_;
};

TEST_F(Interchange, AFusedAdapterGoesAsItIs) {
  const AdapterFile file = adapter(AdapterKind::general, {"qkv", "proj", "fc1", "fc2"}, 2, 2);
  saved(peft({file}));
  const TensorMap out = load_safetensors(dir_ / "peft/adapter_model.safetensors").tensors;
  EXPECT_EQ(out.size(), file.tensors.size());
  for (const auto& [name, t] : file.tensors)
    EXPECT_EQ(out.at("base_model.model." + name).to_vector(), t.to_vector()) << name;
  const json c = config();
  EXPECT_EQ(c.at("r"), 2);
  EXPECT_EQ(c.at("lora_alpha"), 4);
  EXPECT_EQ(c.at("target_modules"), json({"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}));
  EXPECT_EQ(c.at("modules_to_save"), json({"head"}));
  EXPECT_TRUE(c.at("rank_pattern").empty());
  // And back, bit for bit.
  const AdapterFile again = back(dir_ / "peft");
  EXPECT_EQ(again.scale, 2);
  ASSERT_EQ(again.tensors.size(), file.tensors.size());
  for (const auto& [name, t] : file.tensors)
    EXPECT_EQ(again.tensors.at(name).to_vector(), t.to_vector()) << name;
}

TEST_F(Interchange, SeparateQKVBecomeOneUpdateOfThreeTimesTheRank) {
  const AdapterFile file = adapter(AdapterKind::general, {"q", "k", "v", "fc1"}, 2, 1.5);
  const auto modules = module_adapters(base_, std::vector{file});
  ASSERT_EQ(modules.size(), 4u);
  ASSERT_EQ(modules[0].module, "blocks.0.attn.qkv");
  EXPECT_EQ(modules[0].a.shape(), Shape({6, 12}));
  EXPECT_EQ(modules[0].b.shape(), Shape({36, 6}));
  for (int64_t r = 0; r < 36; ++r)
    for (int64_t c = 0; c < 6; ++c) {
      const char* third = r < 12 ? "q" : r < 24 ? "k" : "v";
      const Tensor b = file.tensors.at(std::string("blocks.0.attn.") + third + ".lora_B.weight");
      const float expected = r / 12 == c / 2 ? b.row<float>(r % 12)[c % 2] : 0;
      EXPECT_EQ(modules[0].b.row<float>(r)[c], expected) << r << ", " << c;
    }
  saved(peft({file}));
  // s = alpha / r is the same in every module: alpha grows with the rank.
  const json c = config();
  const int64_t rank = c.at("r");
  EXPECT_EQ(c.at("lora_alpha").get<double>(), 1.5 * double(rank));
  ASSERT_EQ(c.at("rank_pattern").size(), 1u);
  const std::string other = rank == 2 ? "attn.qkv" : "mlp.fc1";
  EXPECT_EQ(c.at("rank_pattern").at(other), rank == 2 ? 6 : 2);
  EXPECT_EQ(c.at("alpha_pattern").at(other), rank == 2 ? 9 : 3);

  const AdapterFile again = back(dir_ / "peft");
  ASSERT_EQ(again.tensors.size(), file.tensors.size());
  for (const auto& [name, t] : file.tensors)
    EXPECT_EQ(again.tensors.at(name).to_vector(), t.to_vector()) << name;
}

TEST_F(Interchange, WhatIsNoLongerBlockDiagonalStaysFused) {
  saved(peft({adapter(AdapterKind::general, {"q", "v"}, 2, 2)}));
  const std::string path = dir_ / "peft/adapter_model.safetensors";
  TensorMap tensors = load_safetensors(path).tensors;
  Tensor& b = tensors.at("base_model.model.blocks.0.attn.qkv.lora_B.weight");
  b = b.clone();
  b.row<float>(15)[0] = 0.25f;  // a row of k
  save_safetensors(path, tensors);
  const AdapterFile again = back(dir_ / "peft");
  EXPECT_EQ(again.tensors.at("blocks.0.attn.qkv.lora_B.weight").to_vector(), b.to_vector());
  EXPECT_TRUE(again.tensors.contains("blocks.1.attn.q.lora_A.weight"));
  EXPECT_FALSE(again.tensors.contains("blocks.1.attn.k.lora_A.weight"));
}

TEST_F(Interchange, TwoAdaptersBecomeOneOfTheSumOfTheRanks) {
  const AdapterFile g = adapter(AdapterKind::general, {"qkv", "fc2"}, 2, 2),
                    p = adapter(AdapterKind::personal, {"q", "v", "fc2"}, 3, 0.7);
  const std::vector both = {g, p};
  const auto modules = module_adapters(base_, both);
  ASSERT_EQ(modules[0].rank(), 2 + 3 + 3);
  ASSERT_EQ(modules[1].rank(), 2 + 3);
  EXPECT_EQ(modules[1].scale, 2);  // the second's scale is in its B
  const Tensor b = p.tensors.at("blocks.0.mlp.fc2.lora_B.weight");
  for (int64_t r = 0; r < 12; ++r)
    for (int64_t c = 0; c < 3; ++c)
      EXPECT_EQ(modules[1].b.row<float>(r)[2 + c], float(double(b.row<float>(r)[c]) * (0.7 / 2)));
  // The head is trained in two parts here; PEFT gets the sum.
  const auto head = head_of(both);
  ASSERT_TRUE(head);
  EXPECT_FLOAT_EQ(head->weight.row<float>(1)[2],
                  g.tensors.at("head.weight").row<float>(1)[2] +
                      p.tensors.at("personal_head.weight").row<float>(1)[2]);
  EXPECT_LE(relative_norm(logits(weights_, {back(saved(peft(both)))}), logits(weights_, both)),
            1e-5);
}

TEST_F(Interchange, MergedWeightsPredictTheSame) {
  std::vector both = {adapter(AdapterKind::general, {"qkv", "proj", "fc1", "fc2"}, 2, 2),
                      adapter(AdapterKind::personal, {"q", "k", "v", "fc1"}, 3, 0.7)};
  make_directories(dir_ / "merged");
  both[0].preprocessing = both[1].preprocessing = {0, 0.75, "bilinear"};
  save_merged(dir_ / "merged", base_, both);
  EXPECT_LE(relative_norm(logits(dir_ / "merged", {}), logits(weights_, both)), 1e-5);
  EXPECT_EQ(label_names(dir_ / "merged", ""), (Strings{"red", "green", "blue"}));
  const json c = json::parse(read_text(dir_ / "merged/config.json"));
  EXPECT_EQ(c.at("num_classes"), 3);
  EXPECT_EQ(c.at("crop_pct"), 0.75);
  EXPECT_EQ(c.at("interpolation"), "bilinear");
  EXPECT_EQ(c.at("num_heads"), 3);
  // What timm reads: nothing in there that it does not know.
  EXPECT_EQ(c.at("pretrained_cfg"), json({{"mean", {0.5, 0.5, 0.5}},
                                          {"std", {0.5, 0.5, 0.5}},
                                          {"interpolation", "bilinear"},
                                          {"crop_pct", 0.75},
                                          {"crop_mode", "center"},
                                          {"num_classes", 3},
                                          {"input_size", {3, 16, 16}}}));
  const TensorMap merged = load_safetensors(dir_ / "merged/model.safetensors").tensors;
  for (const auto& [name, t] : base_.file.tensors)
    EXPECT_EQ(merged.at(name).shape(), t.shape()) << name;
  EXPECT_EQ(merged.at("blocks.1.norm1.weight").to_vector(),
            base_.file.tensors.at("blocks.1.norm1.weight").to_vector());
}

TEST_F(Interchange, AMergedWeightIsKeptInFp32) {
  TensorMap half = base_.file.tensors;
  for (auto& [name, t] : half) t = t.to(DType::bf16);
  save_safetensors(weights_, half);
  base_ = BaseFile::open(weights_, "");
  const std::vector file = {adapter(AdapterKind::general, {"fc1"}, 2, 2)};
  const TensorMap merged = merged_tensors(base_, file);
  const Tensor w = merged.at("blocks.0.mlp.fc1.weight");
  EXPECT_EQ(w.dtype(), DType::f32);
  EXPECT_EQ(merged.at("blocks.0.mlp.fc2.weight").dtype(), DType::bf16);
  const Tensor a = file[0].tensors.at("blocks.0.mlp.fc1.lora_A.weight"),
               b = file[0].tensors.at("blocks.0.mlp.fc1.lora_B.weight");
  const Tensor before = half.at("blocks.0.mlp.fc1.weight").to(DType::f32);
  for (int64_t i = 0; i < w.rows(); ++i)
    for (int64_t j = 0; j < w.cols(); ++j) {
      double expected = before.row<float>(i)[j];
      for (int64_t r = 0; r < 2; ++r)
        expected += 2 * double(b.row<float>(i)[r]) * double(a.row<float>(r)[j]);
      EXPECT_EQ(w.row<float>(i)[j], float(expected));
    }
}

TEST_F(Interchange, ModulesAreNamedInFullWhereAShortNameWouldMeanMore) {
  saved(peft({adapter(AdapterKind::general, {"fc1"}, 2, 2, true, {1})}));
  EXPECT_EQ(config().at("target_modules"), json({"blocks.1.mlp.fc1"}));
  const AdapterFile again = back(dir_ / "peft");
  EXPECT_TRUE(again.tensors.contains("blocks.1.mlp.fc1.lora_A.weight"));
  EXPECT_EQ(again.tensors.size(), 4u);
}

TEST_F(Interchange, PatternsOfRankAndAlphaAreFollowed) {
  saved(peft({adapter(AdapterKind::general, {"qkv", "fc1"}, 2, 2)}));
  const Tensor expected = logits(weights_, {back(dir_ / "peft")});
  // The same adapter in other words: alpha halved, but doubled again for fc1 and, in B, for qkv.
  json j = config();
  j["lora_alpha"] = 2;
  j["alpha_pattern"] = {{"mlp.fc1", 4}};
  write_file(dir_ / "peft/adapter_config.json", j.dump());
  TensorMap tensors = load_safetensors(dir_ / "peft/adapter_model.safetensors").tensors;
  for (auto& [name, t] : tensors)
    if (name.ends_with("qkv.lora_B.weight")) {
      t = t.clone();
      t.add(t.clone());
    }
  save_safetensors(dir_ / "peft/adapter_model.safetensors", tensors);
  EXPECT_LE(relative_norm(logits(weights_, {back(dir_ / "peft")}), expected), 1e-6);
}

TEST_F(Interchange, WhatIsNotSupportedIsRefusedByName) {
  const auto set = [](const char* key, const json& value) {
    return [key, value](json& j) { j[key] = value; };
  };
  EXPECT_TRUE(refused(set("use_dora", true), {"adapter_config.json", "use_dora", "DoRA", "merge"}));
  EXPECT_TRUE(refused(set("use_rslora", true), {"use_rslora", "multiply lora_alpha by sqrt(r)"}));
  EXPECT_TRUE(refused(set("bias", "all"), {"bias is \"all\"", "bias=\"none\""}));
  EXPECT_TRUE(refused(set("peft_type", "LOHA"), {"peft_type", "LOHA", "only LORA"}));
  EXPECT_TRUE(refused([](json& j) { j.erase("peft_type"); }, {"peft_type is missing"}));
  EXPECT_TRUE(refused(set("init_lora_weights", "pissa"), {"pissa", "path_initial_model"}));
  EXPECT_TRUE(refused(set("fan_in_fan_out", true), {"'fan_in_fan_out' is true"}));
  EXPECT_TRUE(refused(set("lora_bias", true), {"'lora_bias'"}));
  EXPECT_TRUE(refused(set("layer_replication", {{0, 1}}), {"'layer_replication'"}));
  EXPECT_TRUE(refused(set("an_option_of_tomorrow", 3), {"'an_option_of_tomorrow' is 3"}));
  EXPECT_TRUE(refused(set("rank_pattern", {{"mlp.fc1", 3}}), {"the rank 3", "has 2 rows"}));
  EXPECT_TRUE(refused(set("rank_pattern", {{".*fc1", 2}}), {"regular expression '.*fc1'"}));
  EXPECT_TRUE(refused(set("alpha_pattern", {{"mlp.fc1", "4"}}), {"must be a number"}));
  EXPECT_TRUE(refused(set("lora_alpha", nullptr), {"'lora_alpha' must be a number"}));
  EXPECT_TRUE(refused(set("r", 4), {"the rank 4"}));
}

TEST_F(Interchange, TensorsThatDoNotFitAreNamed) {
  const std::string a = kKey, b = "base_model.model.blocks.0.attn.qkv.lora_B.weight";
  const Tensor one = Tensor::full({1}, DType::f32, 1);
  EXPECT_TRUE(tensors_refused([&](TensorMap& t) { t.erase(a); }, {a, "is missing"}));
  EXPECT_TRUE(tensors_refused([&](TensorMap& t) { t.erase(b); }, {b, "is missing"}));
  EXPECT_TRUE(tensors_refused(
      [&](TensorMap& t) { t["base_model.model.blocks.0.attn.qkv.lora_magnitude_vector"] = one; },
      {"lora_magnitude_vector", "neither a LoRA weight"}));
  EXPECT_TRUE(tensors_refused([&](TensorMap& t) { t["base_model.model.norm.weight"] = one; },
                              {"norm.weight", "modules_to_save=[\"head\"]"}));
  EXPECT_TRUE(tensors_refused([&](TensorMap& t) { t.erase("base_model.model.head.bias"); },
                              {"weight and bias must both"}));
  EXPECT_TRUE(tensors_refused(
      [&](TensorMap& t) {
        t[a] = Tensor::full({2, 12}, DType::f32, std::nan(""));
      },
      {a, "NaN or infinity"}));
  EXPECT_TRUE(tensors_refused(
      [&](TensorMap& t) {
        t[a] = Tensor::full({2, 11}, DType::f32, 1);
      },
      {"blocks.0.attn.qkv", "[2, 11]", "A [r, 12]"}));
  EXPECT_TRUE(tensors_refused(
      [&](TensorMap& t) {
        t["base_model.model.patch_embed.proj.lora_A.weight"] = Tensor::full({2, 12}, DType::f32, 1);
        t["base_model.model.patch_embed.proj.lora_B.weight"] = Tensor::full({12, 2}, DType::f32, 1);
      },
      {"'patch_embed.proj'", "not an attention or MLP layer"}));
  EXPECT_TRUE(tensors_refused([&](TensorMap& t) { t.clear(); }, {"no LoRA weights"}));
}

TEST_F(Interchange, FoldersThatAreNoAdapter) {
  EXPECT_TRUE(
      user_error([&] { load_peft(dir_ / "nowhere", base_); }, {"nowhere", "check the path"}));
  EXPECT_TRUE(user_error([&] { load_peft(dir_ / "base", base_); },
                         {"adapter_config.json", "save_pretrained"}));
  saved(peft({adapter(AdapterKind::general, {"fc1"}, 2, 2)}));
  write_file(dir_ / "peft/adapter_config.json", "{");
  EXPECT_TRUE(user_error([&] { load_peft(dir_ / "peft", base_); }, {"not valid JSON"}));
}

TEST_F(Interchange, AdaptersOfAnotherBase) {
  AdapterFile file = adapter(AdapterKind::general, {"fc1"}, 2, 2);
  file.base_sha256 = std::string(64, 'a');
  EXPECT_TRUE(user_error([&] { module_adapters(base_, std::vector{file}); },
                         {"not the base model", "aaaaaaaaaaaa"}));
  file = adapter(AdapterKind::general, {"fc1"}, 2, 2);
  file.tensors.erase("blocks.1.mlp.fc1.lora_B.weight");
  EXPECT_TRUE(user_error([&] { module_adapters(base_, std::vector{file}); },
                         {"blocks.1.mlp.fc1.lora_B.weight", "missing"}));
}

// ---- Other families: modules that are parts of our layers, and other names ----------------------

struct Known {
  const char* folder;
  const char* query;  // the module of block 0's q in the file,
  const char* live4;  // and in the models of transformers 4
  const char* live5;  // and 5; null: the same
};
void PrintTo(const Known& known, std::ostream* os) {
  *os << known.folder;
}

class Families : public testing::TestWithParam<Known> {
 protected:
  // Random general and personal adapters of other targets each.
  std::vector<AdapterFile> adapters() {
    std::vector<AdapterFile> files;
    for (const AdapterKind kind : {AdapterKind::general, AdapterKind::personal}) {
      const bool general = kind == AdapterKind::general;
      Vit model = Vit::load(weights_, "", DType::f32);
      LoraConfig lora;
      lora.rank = lora.personal_rank = general ? 2 : 3;
      lora.targets = general ? Strings{"q", "v", "fc1"} : Strings{"qkv", "proj", "fc2"};
      attach_adapters(model, lora, kind);
      AdapterFile file{kind, general ? 2 : 0.7,           {}, base_.sha256, "",
                       0,    adapter_tensors(model, kind)};
      uint64_t seed = general ? 10 : 20;
      for (auto& [name, t] : file.tensors) {
        const Philox rng{seed++};
        for (int64_t r = 0; r < t.rows(); ++r)
          for (int64_t c = 0; c < t.cols(); ++c)
            t.row<float>(r)[c] = float(0.3 * normal(rng, uint64_t(r * t.cols() + c)));
      }
      files.push_back(file);
    }
    return files;
  }
  Tensor features(const std::string& weights, const std::vector<AdapterFile>& files) {
    return predicted(weights, files).features;
  }
  Predictor::Output predicted(const std::string& weights, const std::vector<AdapterFile>& files) {
    Strings paths;
    for (const AdapterFile& file : files) {
      paths.push_back(dir_ / ("adapter" + std::to_string(paths.size())));
      save_adapter(paths.back(), file);
    }
    const Predictor predictor(std::make_unique<Vit>(Vit::load(weights, "", DType::f32)), paths);
    const VitConfig& c = predictor.model().config;
    std::vector<float> pixels(size_t(2 * c.patches() * 3 * c.patch * c.patch));
    for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = float(normal(Philox{5}, i));
    return predictor.predict(Tensor::of(pixels, {2 * c.patches(), 3 * c.patch * c.patch}), 2);
  }

  TemporaryDirectory dir_;
  std::string weights_ = test::source_dir() + "/tests/fixtures/backbones/" + GetParam().folder;
  BaseFile base_ = BaseFile::open(weights_, "");
};

TEST_P(Families, ThereAndBack) {
  const std::vector<AdapterFile> both = adapters();
  const Tensor expected = features(weights_, both);
  EXPECT_GT(relative_norm(features(weights_, {}), expected), 1e-2);
  const auto modules = module_adapters(base_, both);
  EXPECT_EQ(modules[0].module, GetParam().query);
  // By the names of every version, each of which is read again without saying whose they are.
  const std::string same = GetParam().query;
  const char *live4 = GetParam().live4, *live5 = GetParam().live5;
  for (const auto& [names, query] :
       {std::pair{ModuleNames::file, same},
        {ModuleNames::transformers4, live4 != nullptr ? live4 : same},
        {ModuleNames::transformers5, live5 != nullptr ? live5 : same}}) {
    const auto named = module_adapters(base_, both, names);
    EXPECT_EQ(named[0].module, query);
    save_peft(dir_.path(), base_, {named, std::nullopt, std::nullopt});
    const PeftAdapter loaded = load_peft(dir_.path(), base_);
    ASSERT_EQ(loaded.modules.size(), named.size());
    const SliceAdapters slices = slice_adapters(base_, loaded.modules);
    const AdapterFile back{AdapterKind::general, slices.scale, {}, base_.sha256, "", 0,
                           slices.tensors};
    EXPECT_LE(relative_norm(features(weights_, {back}), expected), 1e-5) << query;
  }

  make_directories(dir_ / "merged");
  save_merged(dir_ / "merged", base_, both);
  EXPECT_LE(relative_norm(features(dir_ / "merged", {}), expected), 1e-5);
}

// Where the library has no classifier for our features, it lies beside weights that the library
// loads strictly.
TEST_P(Families, MergedWeightsHaveTheClassifier) {
  std::vector<AdapterFile> both = adapters();
  const int64_t width = base_.architecture.config.feature_dim();
  std::vector<float> w(size_t(3 * width));
  for (size_t i = 0; i < w.size(); ++i) w[i] = float(normal(Philox{7}, i));
  both[0].tensors["head.weight"] = Tensor::of(w, {3, width});
  both[0].tensors["head.bias"] = Tensor::of(std::vector<float>{1, 2, 3}, {3});
  both[0].classes = {"red", "green", "blue"};
  make_directories(dir_ / "merged");
  save_merged(dir_ / "merged", base_, both);
  EXPECT_LE(relative_norm(predicted(dir_ / "merged", {}).logits, predicted(weights_, both).logits),
            1e-5);
  EXPECT_EQ(label_names(dir_ / "merged", ""), both[0].classes);
  const std::string beside = dir_ / "merged/head.safetensors";
  EXPECT_EQ(std::filesystem::exists(beside), !base_.head().has_value());
  if (base_.head()) return;
  const TensorMap merged = load_safetensors(dir_ / "merged/model.safetensors").tensors;
  EXPECT_EQ(merged.size(), base_.file.tensors.size());
  save_safetensors(beside, {{"weight", Tensor::full({3, 1}, DType::f32, 1)},
                            {"bias", Tensor::full({3}, DType::f32, 1)}});
  EXPECT_TRUE(user_error([&] { Vit::load(dir_ / "merged", "", DType::f32); },
                         {"head.safetensors", "[classes, " + std::to_string(width) + "]"}));
}

INSTANTIATE_TEST_SUITE_P(
    All, Families,
    testing::Values(Known{"timm_swiglu", "blocks.0.attn.qkv", nullptr, nullptr},
                    Known{"dinov2", "blocks.0.attn.qkv", nullptr, nullptr},
                    Known{"hf_vit", "vit.encoder.layer.0.attention.attention.query", nullptr,
                          "vit.layers.0.attention.q_proj"},
                    Known{"hf_dinov2_swiglu", "encoder.layer.0.attention.attention.query", nullptr,
                          "encoder.layer.0.attention.q_proj"},
                    Known{"hf_dinov2_with_registers", "encoder.layer.0.attention.attention.query",
                          nullptr, "encoder.layer.0.attention.q_proj"},
                    Known{"hf_dinov3_vit_gated", "layer.0.attention.q_proj", nullptr,
                          "model.layer.0.attention.q_proj"},
                    Known{"hf_clip_vision_model", "vision_model.encoder.layers.0.self_attn.q_proj",
                          nullptr, "encoder.layers.0.self_attn.q_proj"},
                    Known{"hf_siglip_vision_model", "encoder.layers.0.self_attn.q_proj",
                          "vision_model.encoder.layers.0.self_attn.q_proj", nullptr}),
    [](const auto& param) { return std::string(param.param.folder); });

// PEFT adapts nn.MultiheadAttention as a whole or not at all.
TEST(OpenClip, AttentionIsMergedButNotExported) {
  const TemporaryDirectory dir;
  const std::string weights = test::source_dir() + "/tests/fixtures/backbones/open_clip";
  const BaseFile base = BaseFile::open(weights, "");
  Vit model = Vit::load(weights, "", DType::f32);
  LoraConfig lora;
  lora.targets = {"qkv", "proj"};
  attach_adapters(model, lora, AdapterKind::general);
  const std::vector file = {AdapterFile{AdapterKind::general,
                                        1,
                                        {},
                                        base.sha256,
                                        "",
                                        0,
                                        adapter_tensors(model, AdapterKind::general)}};
  EXPECT_TRUE(user_error(
      [&] {
        save_peft(dir.path(), base, {module_adapters(base, file), std::nullopt, std::nullopt});
      },
      {"attn.in_proj_weight", "as a whole", "merged"}));
  AdapterFile proj = file[0];
  std::erase_if(proj.tensors,
                [](const auto& t) { return t.first.find("qkv") != std::string::npos; });
  const std::vector alone = {proj};
  EXPECT_TRUE(user_error(
      [&] {
        save_peft(dir.path(), base, {module_adapters(base, alone), std::nullopt, std::nullopt});
      },
      {"attn.out_proj.weight", "as a whole", "merged"}));
  EXPECT_NO_THROW(merged_tensors(base, file));
}

}  // namespace
}  // namespace orthofed
