// export, import and inspect as their users run them: on a federation of two small sites, whose
// images are larger than the model's input, so that the preprocessing matters.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "engine/io/files.h"
#include "engine/io/png.h"
#include "engine/io/safetensors.h"
#include "kernels/core/philox.h"
#include "models/training/demo_base.h"
#include "tests/support/files.h"
#include "tests/support/graph.h"
#include "tests/support/process.h"

namespace orthofed {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using test::contents;
using test::Process;
using Words = std::vector<std::string>;

const Words kClasses = {"red", "green", "blue"};

// u8 [20, 24, 3]: noise with one channel lifted in the middle, which is all a centre crop sees.
Tensor picture(int64_t label, uint64_t seed) {
  constexpr int64_t kHeight = 20, kWidth = 24;
  std::vector<uint8_t> pixels(kHeight * kWidth * 3);
  for (size_t i = 0; i < pixels.size(); ++i) {
    const size_t x = i / 3 % kWidth;
    const bool middle = x >= 6 && x < 18;
    const bool lifted = middle ? int64_t(i % 3) == label : int64_t(i % 3) == (label + 1) % 3;
    pixels[i] = uint8_t(Philox{seed}(i)[0] % 128 + (lifted ? 120 : 0));
  }
  return Tensor::of(pixels, {int64_t(pixels.size())}).reshape({kHeight, kWidth, 3});
}

std::unique_ptr<Process> orthofed(Words words, const std::string& streams) {
  words.insert(words.begin(), OF_BINARY_DIR "/bin/orthofed");
  auto process = std::make_unique<Process>(words, streams);
  process->status();
  return process;
}

// One run, read by every test.
struct World {
  test::TemporaryDirectory dir;
  std::string base, run;

  World() {
    const VitConfig c{
        .image_size = 16, .patch = 8, .dim = 12, .depth = 2, .heads = 3, .mlp_dim = 24};
    base = save_base(Vit::create(c, DType::f32, 1), dir / "base");
    uint64_t seed = 0;
    for (const std::string client : {"a", "b"})
      for (const std::string split : {"train", "test"})
        for (size_t label = 0; label < 3; ++label) {
          const std::string folder =
              dir / ("images/" + client + "/" + split + "/" + kClasses[label]);
          make_directories(folder);
          for (int i = 0; i < 4; ++i)
            save_png(folder + "/" + std::to_string(i) + ".png", picture(int64_t(label), ++seed));
        }
    write_file(dir / "run.toml", R"(method = "dual"
rounds = 2
threads = 1
precision = "f32"
[model]
weights = "base/model.safetensors"
head = "both"
[lora]
rank = 2
personal_rank = 3
alpha = 4
personal_alpha = 2
targets = ["q", "v", "fc1"]
[train]
batch_size = 4
lr = 1e-2
[data]
root = "images"
format = "folder"
classes = ["red", "green", "blue"]
crop_pct = 0.6
interpolation = "bilinear"
[federation]
clients = ["a", "b"]
)");
    run = dir / "run";
    const auto done = orthofed({"run", dir / "run.toml", "--in-process", "--out", run, "--quiet"},
                               dir / "stream");
    if (done->status() != 0) throw Error(done->err());
  }
  std::string general() const { return run + "/general_adapter.safetensors"; }
  std::string personal() const { return run + "/clients/a/personal_adapter.safetensors"; }
};

const World& world() {
  static const World w;
  return w;
}

class Interchange : public testing::Test {
 protected:
  std::string at(const std::string& name) const { return mine_ / name; }
  std::unique_ptr<Process> ended(const Words& words) {
    return orthofed(words, at("stream" + std::to_string(++started_)));
  }
  json succeed(Words words) {
    words.push_back("--json");
    const auto process = ended(words);
    EXPECT_EQ(process->status(), 0) << process->err();
    return json::parse(process->out(), nullptr, false);
  }
  // Status 2, one line with all parts, and nothing new in the test's folder but the streams.
  void refuse(const Words& words, const Words& parts) {
    const std::set<std::string> before = names();
    const auto process = ended(words);
    const std::string err = process->err();
    EXPECT_EQ(process->status(), 2) << err;
    EXPECT_EQ(process->out(), "");
    EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
    for (const std::string& part : parts)
      EXPECT_NE(err.find(part), std::string::npos) << "'" << part << "' is not in: " << err;
    EXPECT_EQ(names(), before);
  }
  std::set<std::string> names() const {
    std::set<std::string> all;
    for (const auto& entry : fs::directory_iterator(mine_.path()))
      if (const std::string name = entry.path().filename(); !name.starts_with("stream"))
        all.insert(name);
    return all;
  }
  Tensor logits(const std::string& weights, const Words& adapters) {
    Words words = {"predict", "--weights",   weights, "--input",  world().dir / "images/a/test",
                   "--quiet", "--precision", "f32",   "--output", at("y.safetensors")};
    for (const std::string& a : adapters) words.insert(words.end(), {"--adapter", a});
    const auto process = ended(words);
    EXPECT_EQ(process->status(), 0) << process->err();
    return load_safetensors(at("y.safetensors")).tensors.at("logits").clone();
  }

  test::TemporaryDirectory mine_;

 private:
  int started_ = 0;
};

TEST_F(Interchange, ToPeftAndBack) {
  const World& w = world();
  const Tensor both = logits(w.base, {w.general(), w.personal()});
  const json said = succeed({"export", w.run, "--client", "a", "--format", "peft", "--adapter",
                             "both", "--concatenate", "--out", at("one")});
  EXPECT_EQ(said.at("adapter"), "both");
  succeed({"import", at("one"), "--weights", w.base, "--out", at("back.safetensors")});
  EXPECT_LE(test::relative_norm(logits(w.base, {at("back.safetensors")}), both), 1e-5);

  succeed({"export", w.run, "--format", "peft", "--out", at("general")});
  const json imported =
      succeed({"import", at("general"), "--weights", w.base, "--out", at("g.safetensors")});
  EXPECT_EQ(imported.at("adapter"), "general");
  EXPECT_EQ(logits(w.base, {at("g.safetensors")}).to_vector(),
            logits(w.base, {w.general()}).to_vector());
  // Metadata and all, the adapter that went is the one that came back.
  EXPECT_EQ(load_safetensors(at("g.safetensors")).metadata, load_safetensors(w.general()).metadata);

  // Two named adapters. The pair's classifier is in one of them alone.
  succeed({"export", w.general(), w.personal(), "--weights", w.base, "--format", "peft", "--out",
           at("pair")});
  const auto has_head = [&](const std::string& name) {
    return load_safetensors(at("pair/" + name + "/adapter_model.safetensors"))
        .tensors.contains("base_model.model.head.weight");
  };
  EXPECT_FALSE(has_head("general"));
  EXPECT_TRUE(has_head("personal"));
  for (const char* name : {"general", "personal"})
    succeed({"import", at(std::string("pair/") + name), "--weights", w.base, "--out",
             at(std::string(name) + ".safetensors")});
  EXPECT_LE(test::relative_norm(
                logits(w.base, {at("general.safetensors"), at("personal.safetensors")}), both),
            1e-5);
}

// The bundle knows what the run's configuration said of preprocessing and classes.
TEST_F(Interchange, ABundlePredictsWhatTheRunScored) {
  const World& w = world();
  succeed({"export", w.run, "--adapter", "both", "--client", "a", "--bundle", at("bundle")});
  EXPECT_TRUE(fs::exists(at("bundle/README.md")));
  const auto predicted =
      ended({"predict", "--weights", at("bundle"), "--input", w.dir / "images/a/test", "--output",
             at("y.safetensors"), "--csv", at("y.csv"), "--precision", "f32"});
  ASSERT_EQ(predicted->status(), 0) << predicted->err();
  std::istringstream csv(contents(at("y.csv")));
  std::string line;
  std::getline(csv, line);
  EXPECT_EQ(line, "path,class,red,green,blue");
  json confusion = json::array({{0, 0, 0}, {0, 0, 0}, {0, 0, 0}});
  while (std::getline(csv, line)) {
    const std::string path = line.substr(0, line.find(','));
    const std::string name =
        line.substr(path.size() + 1, line.find(',', path.size() + 1) - path.size() - 1);
    const auto index = [](const std::string& c) {
      return size_t(std::find(kClasses.begin(), kClasses.end(), c) - kClasses.begin());
    };
    auto& cell = confusion[index(fs::path(path).parent_path().filename())][index(name)];
    cell = cell.get<int>() + 1;
  }
  const json summary = json::parse(contents(w.run + "/summary.json"));
  EXPECT_EQ(confusion, summary.at("clients")[0].at("confusion"));
  // The logits, too: those of base and adapters, with the run's preprocessing.
  json config = json::parse(contents(w.dir / "base/config.json"));
  config["crop_pct"] = 0.6;
  config["interpolation"] = "bilinear";
  fs::create_directory(at("base"));
  fs::copy(w.base, at("base/model.safetensors"));
  write_file(at("base/config.json"), config.dump());
  const Tensor run = logits(at("base/model.safetensors"), {w.general(), w.personal()});
  EXPECT_LE(test::relative_norm(logits(at("bundle"), {}), run), 1e-5);
}

TEST_F(Interchange, MergedWeightsOfAdapterFiles) {
  const World& w = world();
  succeed(
      {"export", w.general(), "--weights", w.base, "--format", "merged", "--out", at("merged/x/")});
  EXPECT_LE(test::relative_norm(logits(at("merged/x"), {}), logits(w.base, {w.general()})), 1e-5);
  EXPECT_NE(contents(at("merged/x/README.md")).find("Not known"), std::string::npos);
}

TEST_F(Interchange, ACardSaysWhereItIsFrom) {
  const World& w = world();
  succeed({"export", w.run, "--format", "peft", "--out", at("general")});
  const std::string card = contents(at("general/README.md"));
  const json summary = json::parse(contents(w.run + "/summary.json"));
  for (const std::string& part :
       {std::string("library_name: peft"), std::string("| method | dual |"),
        std::string("general: rank 2, scale 2, after 2 rounds"), std::string("red, green, blue"),
        summary.at("base_model").at("sha256").get<std::string>(), std::string("| a | 12 | 12 |"),
        std::string("not a medical device")})
    EXPECT_NE(card.find(part), std::string::npos) << part << " is not in:\n" << card;
  EXPECT_EQ(card.find("personal:"), std::string::npos) << card;
}

TEST_F(Interchange, ExportRefusesWhatItCannotDo) {
  const World& w = world();
  const Words peft = {"export", w.run, "--format", "peft", "--out", at("out")};
  const auto with = [](Words words, const Words& more) {
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  refuse({"export", w.run, "--out", at("out")}, {"--format", "--bundle"});
  refuse({"export", "a", "b", "c", "--format", "peft", "--out", at("out")}, {"c: a third"});
  refuse({"export", w.run, "--format", "peft"}, {"--out"});
  refuse({"export", w.run, "--format", "onnx", "--out", at("out")}, {"--format", "onnx"});
  refuse(with(peft, {"--bundle", at("b")}), {"--bundle", "takes the place"});
  refuse(with(peft, {"--adapter", "both"}), {"whose personal adapter", "--client a", "--client b"});
  refuse(with(peft, {"--adapter", "both", "--client", "c"}), {"--client", "clients/c"});
  refuse(with(peft, {"--concatenate"}), {"--concatenate", "--adapter both"});
  refuse({"export", w.general(), "--format", "peft", "--out", at("out")}, {"--weights"});
  refuse({"export", w.general(), w.general(), "--format", "peft", "--out", at("out")},
         {"two adapters of one kind"});
  refuse({"export", w.general(), "--format", "peft", "--adapter", "personal", "--weights", w.base,
          "--out", at("out")},
         {"--adapter personal", "no personal adapter"});
  refuse({"export", w.general(), "--weights", w.base, "--client", "a", "--format", "peft", "--out",
          at("out")},
         {"--client", "give the run"});
  refuse({"export", w.base, "--weights", w.base, "--format", "peft", "--out", at("out")},
         {"model.safetensors", "not an adapter"});
  refuse({"export", at("nowhere"), "--weights", w.base, "--format", "peft", "--out", at("out")},
         {"nowhere", "check the path"});
  refuse({"export", w.dir / "images", "--format", "peft", "--out", at("out")},
         {"images", "general_adapter.safetensors"});
  // Another base; a base without its configuration; an output that is there.
  fs::create_directory(at("other"));
  fs::copy(w.dir / "base/config.json", at("other/config.json"));
  TensorMap tensors = load_safetensors(w.base).tensors;
  tensors.at("norm.bias") = Tensor::full({12}, DType::f32, 1);
  save_safetensors(at("other/model.safetensors"), tensors);
  refuse(with(peft, {"--weights", at("other")}), {"other", "not the base model", "sha256"});
  fs::copy(w.base, at("alone.safetensors"));
  refuse({"export", w.general(), "--weights", at("alone.safetensors"), "--format", "merged",
          "--out", at("out")},
         {"alone.safetensors", "no config.json", "name one (model.config)"});
  refuse({"export", w.run, "--format", "peft", "--out", at("other")},
         {"other", "is there already"});
}

TEST_F(Interchange, ImportRefusesWhatItCannotRead) {
  const World& w = world();
  succeed({"export", w.run, "--format", "peft", "--out", at("peft")});
  const Words import = {"import", at("peft"), "--weights", w.base, "--out", at("x.safetensors")};
  const std::string sound = contents(at("peft/adapter_config.json"));
  const auto spoil = [&](const std::string& key, const json& value) {
    json j = json::parse(sound);
    j[key] = value;
    write_file(at("peft/adapter_config.json"), j.dump());
  };
  spoil("use_dora", true);
  refuse(import, {"adapter_config.json", "DoRA"});
  spoil("use_rslora", true);
  refuse(import, {"use_rslora", "sqrt(r)"});
  write_file(at("peft/adapter_config.json"), sound);
  refuse({"import", at("peft"), "--out", at("x.safetensors")}, {"--weights"});
  refuse({"import", at("peft"), "--weights", w.base, "--out", at("peft/README.md")},
         {"README.md", "is there already"});
  refuse(
      {"import", at("peft"), "--weights", w.base, "--class", "one", "--out", at("x.safetensors")},
      {"--class", "1 names", "3 classes"});
  refuse({"import", w.run, "--weights", w.base, "--out", at("x.safetensors")},
         {"adapter_config.json", "save_pretrained"});
  fs::create_directory(at("other"));
  fs::copy(w.dir / "base/config.json", at("other/config.json"));
  TensorMap tensors = load_safetensors(w.base).tensors;
  tensors.at("norm.bias") = Tensor::full({12}, DType::f32, 1);
  save_safetensors(at("other/model.safetensors"), tensors);
  refuse({"import", at("peft"), "--weights", at("other"), "--out", at("x.safetensors")},
         {"exported for another base model"});
}

TEST_F(Interchange, InspectSaysWhatAFileIs) {
  const World& w = world();
  const json base = succeed({"inspect", w.base});
  EXPECT_EQ(base.at("what"), "weights");
  EXPECT_EQ(base.at("sha256"),
            json::parse(contents(w.run + "/summary.json"))["base_model"]["sha256"]);
  EXPECT_EQ(base.at("geometry").at("image_size"), 16);
  EXPECT_EQ(base.at("geometry").at("heads"), 3);
  EXPECT_EQ(base.at("dtypes"), json({{"f32", base.at("tensors")}}));
  int64_t elements = 0;
  for (const auto& [name, t] : load_safetensors(w.base).tensors) elements += t.size();
  EXPECT_EQ(base.at("parameters"), elements);
  const auto text = ended({"inspect", w.dir / "base"});
  EXPECT_EQ(text->status(), 0) << text->err();
  EXPECT_NE(text->out().find("ViT"), std::string::npos) << text->out();

  const json adapter = succeed({"inspect", w.personal()});
  EXPECT_EQ(adapter.at("what"), "adapter");
  EXPECT_EQ(adapter.at("kind"), "personal");
  EXPECT_EQ(adapter.at("targets"), json({{"attn.q", {3}}, {"attn.v", {3}}, {"mlp.fc1", {3}}}));
  EXPECT_EQ(adapter.at("classes"), json(kClasses));

  succeed({"export", w.run, "--format", "peft", "--out", at("peft")});
  const json peft = succeed({"inspect", at("peft")});
  EXPECT_EQ(peft.at("what"), "PEFT adapter");
  EXPECT_EQ(peft.at("targets"), json({{"attn.qkv", {4}}, {"mlp.fc1", {2}}}));
  EXPECT_EQ(peft.at("head_classes"), 3);

  succeed({"export", w.run, "--bundle", at("bundle")});
  EXPECT_EQ(succeed({"inspect", at("bundle")}).at("class_names"), json(kClasses));
}

// The report comes all the same, and says which tensor it is.
TEST_F(Interchange, InspectNamesWhatDoesNotFit) {
  const World& w = world();
  fs::create_directory(at("odd"));
  fs::copy(w.dir / "base/config.json", at("odd/config.json"));
  TensorMap tensors = load_safetensors(w.base).tensors;
  tensors["blocks.0.mystery.weight"] = Tensor::full({2, 3}, DType::f32, 1);
  save_safetensors(at("odd/model.safetensors"), tensors);
  const auto process = ended({"inspect", at("odd"), "--json"});
  EXPECT_EQ(process->status(), 2);
  EXPECT_NE(process->err().find("blocks.0.mystery.weight"), std::string::npos) << process->err();
  EXPECT_NE(process->err().find("the nearest family is"), std::string::npos) << process->err();
  const json report = json::parse(process->out(), nullptr, false);
  EXPECT_NE(report.at("does_not_fit").dump().find("blocks.0.mystery.weight"), std::string::npos);
  write_file(at("text.safetensors"), "not a file of weights");
  refuse({"inspect", at("text.safetensors")}, {"text.safetensors", "not a safetensors file"});
  refuse({"inspect", at("nowhere")}, {"nowhere", "check the path"});
}

}  // namespace
}  // namespace orthofed
