#include "models/config/toml.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <variant>
#include <vector>

#include "engine/io/text.h"
#include "kernels/core/check.h"
#include "models/config/keys.h"

namespace orthofed {
namespace {

namespace fs = std::filesystem;
using Strings = std::vector<std::string>;

// The least that is a configuration.
const std::string kClasses = "data.classes = [\"a\", \"b\"]\n";

RunConfig parse(const std::string& text, const Strings& overrides = {}, Strings* notes = nullptr) {
  return parse_config(kClasses + text, "run.toml", overrides, notes);
}

// What a configuration is refused with; the text starts at line 2.
std::string refusal(const std::string& text, const Strings& overrides = {}) {
  try {
    parse(text, overrides);
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

std::string refusal_alone(const std::string& text) {
  try {
    parse_config(text, "run.toml");
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

std::string read(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

class Folder {
 public:
  Folder() {
    std::string pattern = (fs::temp_directory_path() / "orthofed-config-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw Error("mkdtemp failed");
    path_ = pattern;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const fs::path& path() const { return path_; }
  fs::path write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name) << text;
    return path_ / name;
  }

 private:
  fs::path path_;
};

TEST(Config, DefaultsAreThoseOfTheStructs) {
  RunConfig expected;
  expected.data.classes = {"a", "b"};
  expected.penalty.update = 2;  // the method's
  EXPECT_EQ(differing_keys(parse(""), expected), Strings{});
}

TEST(Config, ReadsEveryTypeAndSection) {
  const RunConfig c = parse(R"toml(
    method = "dual"
    rounds = 3
    seed = 9007199254740992
    [lora]
    targets = ["q", "v"]
    layers = [10, 11]
    init_orthogonal = true
    [train]
    lr = 1          # an integer where a number is expected
    weight_decay = 1e-4
    [data.labels]
    NEU = "a"
    "LYM (small)" = "b"
    [data.columns]
    client = "site"
  )toml");
  EXPECT_EQ(c.method, "dual");
  EXPECT_EQ(c.rounds, 3);
  EXPECT_EQ(c.seed, 9007199254740992u);
  EXPECT_EQ(c.lora.targets, (Strings{"q", "v"}));
  EXPECT_EQ(c.lora.layers, (std::vector<int64_t>{10, 11}));
  EXPECT_TRUE(c.lora.init_orthogonal);
  EXPECT_EQ(c.train.lr, 1.0);
  EXPECT_EQ(c.train.weight_decay, 1e-4);
  EXPECT_EQ(c.data.labels,
            (std::map<std::string, std::string>{{"NEU", "a"}, {"LYM (small)", "b"}}));
  EXPECT_EQ(c.data.column_client, "site");
}

TEST(Config, OverridesAreTomlOrBareWords) {
  const RunConfig c = parse(
      "train.lr = 1e-2", {"method=dual", "train.lr=3e-4", "train.lr = 5e-4", "lora.targets=q,v",
                          "lora.layers=10, 11", "model.head=\"both\"", "lora.init_orthogonal=true",
                          "data.labels.NEU=a", "data.labels.\"L S\" = b"});
  EXPECT_EQ(c.method, "dual");
  EXPECT_EQ(c.train.lr, 5e-4);
  EXPECT_EQ(c.lora.targets, (Strings{"q", "v"}));
  EXPECT_EQ(c.lora.layers, (std::vector<int64_t>{10, 11}));
  EXPECT_EQ(c.model.head, HeadKind::both);
  EXPECT_TRUE(c.lora.init_orthogonal);
  EXPECT_EQ(c.data.labels, (std::map<std::string, std::string>{{"NEU", "a"}, {"L S", "b"}}));

  EXPECT_EQ(parse("", {"lora.targets=qkv"}).lora.targets, Strings{"qkv"});
  EXPECT_EQ(parse("", {"lora.targets=[\"fc1\"]"}).lora.targets, Strings{"fc1"});
  EXPECT_EQ(parse("", {"lora.targets=[fc1, fc2]"}).lora.targets, (Strings{"fc1", "fc2"}));
  EXPECT_EQ(parse("lora.layers = [1]", {"lora.layers=[]"}).lora.layers, std::vector<int64_t>{});
  EXPECT_EQ(parse("", {"data.manifest=2020-01-01"}).data.manifest, "2020-01-01");
  EXPECT_EQ(parse("", {"data.manifest=a=b.csv"}).data.manifest, "a=b.csv");
  EXPECT_EQ(parse("data.client = \"x\"", {"data.client="}).data.client, "");
  EXPECT_EQ(parse("", {"train={epochs=4, batch_size=2}"}).train.epochs, 4);
  // One name is added, the file's stay.
  EXPECT_EQ(parse("data.labels = {x = \"a\"}", {"data.labels.y=b"}).data.labels.size(), 2u);
}

TEST(Config, UnknownKeysNameTheNearest) {
  EXPECT_EQ(refusal("train.epoch = 2"),
            "run.toml:2: unknown key 'train.epoch'; did you mean 'train.epochs'?");
  EXPECT_EQ(refusal("[trian]\nlr = 2"),
            "run.toml:3: unknown key 'trian.lr'; did you mean 'train.lr'?");
  EXPECT_EQ(refusal("lr = 2"), "run.toml:2: unknown key 'lr'; did you mean 'train.lr'?");
  EXPECT_EQ(refusal("[model]\nlr = 2"),
            "run.toml:3: unknown key 'model.lr'; did you mean 'train.lr'?");
  EXPECT_EQ(refusal("xyzzy_plugh = 2"),
            "run.toml:2: unknown key 'xyzzy_plugh'; docs/configuration.md lists all keys");
  EXPECT_EQ(refusal("", {"rouns=3"}),
            "override rouns=3: unknown key 'rouns'; did you mean 'rounds'?");
  EXPECT_EQ(refusal("[penalties]"), "run.toml:2: unknown key 'penalties'; did you mean 'penalty'?");
  // The first in the file is reported, whatever the order in memory.
  EXPECT_EQ(refusal("b1 = 1\na1 = 1\n[zz]\nc1 = 1").substr(0, 25), "run.toml:2: unknown key '");
}

TEST(Config, TypeErrorsNameKeyExpectedAndFound) {
  EXPECT_EQ(refusal("train.lr = \"fast\""),
            "run.toml:2: train.lr: expected a number, found the string \"fast\"");
  EXPECT_EQ(refusal("rounds = 2.5"),
            "run.toml:2: rounds: expected an integer, found the number 2.5");
  EXPECT_EQ(refusal("method = 3"), "run.toml:2: method: expected a string, found the integer 3");
  EXPECT_EQ(refusal("lora.init_orthogonal = 1"),
            "run.toml:2: lora.init_orthogonal: expected true or false, found the integer 1");
  EXPECT_EQ(refusal("lora.targets = \"qkv\""),
            "run.toml:2: lora.targets: expected a list of strings, found the string \"qkv\"");
  EXPECT_EQ(refusal("lora.targets = [\"qkv\", 3]"),
            "run.toml:2: lora.targets: expected a string, found the integer 3");
  EXPECT_EQ(refusal("lora.layers = [0.5]"),
            "run.toml:2: lora.layers: expected an integer, found the number 0.5");
  EXPECT_EQ(refusal("data.labels = [\"a\"]"),
            "run.toml:2: data.labels: expected a table of strings, found a list");
  EXPECT_EQ(refusal("data.labels = {x = true}"),
            "run.toml:2: data.labels: expected a string, found true");
  EXPECT_EQ(refusal("train = 5"),
            "run.toml:2: 'train' is a section: expected a table, found the integer 5");
  EXPECT_EQ(refusal("rounds = 1979-05-27"),
            "run.toml:2: rounds: expected an integer, found a date or time");
  EXPECT_EQ(refusal("", {"rounds=many"}),
            "override rounds=many: rounds: expected an integer, found the string \"many\"");
  EXPECT_EQ(refusal("", {"rounds"}), "override rounds: expected key=value, as in train.lr=3e-4");
  EXPECT_EQ(refusal("", {"=3"}), "override =3: expected key=value, as in train.lr=3e-4");
  EXPECT_EQ(refusal("", {"a b=3"}), "override a b=3: expected a dotted key before the =");
}

TEST(Config, SyntaxErrorsTakeOneLineWithFileAndLine) {
  for (const char* text :
       {"rounds = ", "rounds = 3 4", "[lora", "rounds = 1\nrounds = 2", "method = \"opal", "= 3"}) {
    const std::string message = refusal(text);
    EXPECT_EQ(message.rfind("run.toml:", 0), 0u) << message;
    EXPECT_NE(message.find("not valid TOML"), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_EQ(message.find("toml::"), std::string::npos) << message;
  }
  EXPECT_EQ(refusal("rounds = 3 4").rfind("run.toml:2: ", 0), 0u) << refusal("rounds = 3 4");
}

TEST(Config, WordsAndRanges) {
  EXPECT_EQ(
      refusal("method = \"opall\""),
      "run.toml:2: method: \"opall\" is not one of opal | dual | fedavg | fedavg_ft | local | "
      "pooled; did you mean 'opal'?");
  for (const char* text : {"model.head = \"none\"",
                           "device = \"tpu\"",
                           "precision = \"fp16\"",
                           "train.schedule = \"linear\"",
                           "train.optimizer = \"adam2\"",
                           "train.alternation = \"both\"",
                           "train.frozen_precision = \"fp4\"",
                           "train.state = \"forget\"",
                           "train.class_weights = \"balanced\"",
                           "penalty.form = \"cos\"",
                           "penalty.detach = \"personal\"",
                           "lora.init = \"zeros\"",
                           "lora.targets = [\"fc3\"]",
                           "lora.strategy = \"extend\"",
                           "data.format = \"csv\"",
                           "data.interpolation = \"nearest\"",
                           "data.on_bad_image = \"ignore\"",
                           "data.partition.kind = \"iid\"",
                           "federation.weights = \"size\"",
                           "federation.share_metrics = \"all\""})
    EXPECT_NE(refusal(text).find("is not one of"), std::string::npos)
        << text << ": " << refusal(text);

  for (const char* strategy : {"unmerged", "extended", "merged"})
    EXPECT_EQ(refusal("lora.strategy = \"" + std::string(strategy) + "\""), "accepted");

  EXPECT_EQ(refusal("rounds = 0"),
            "run.toml:2: rounds: expected a value >= 1 and <= 1000000, found the integer 0");
  EXPECT_EQ(
      refusal("data.crop_pct = 1.5"),
      "run.toml:2: data.crop_pct: expected a value > 0 and <= 1, or -1, found the number 1.5");
  for (const char* text : {"seed = -1",
                           "threads = 0",
                           "train.lr = 0",
                           "train.lr = nan",
                           "train.lr = inf",
                           "train.epochs = -1",
                           "train.batch_size = 0",
                           "train.warmup = 1",
                           "train.clip = -1",
                           "train.label_smoothing = 1.0",
                           "train.personal_dropout = 1.0",
                           "lora.rank = 0",
                           "lora.personal_rank = 0",
                           "lora.alpha = 0",
                           "lora.layers = [-1]",
                           "penalty.update = -0.1",
                           "penalty.base = -1",
                           "penalty.base_subspace_k = 0",
                           "data.validation = 1.0",
                           "data.image_size = 4",
                           "data.augment.crop_scale_min = 0",
                           "data.augment.stain = 1",
                           "data.partition.alpha = 0",
                           "data.synthetic.clients = 5",
                           "data.synthetic.shift = 2",
                           "federation.timeout_seconds = 0",
                           "federation.max_frame_mb = 0"})
    EXPECT_NE(refusal(text).find("expected a value"), std::string::npos)
        << text << ": " << refusal(text);
  // toml11 3 takes what is too large for the largest integer, 4 refuses it: both end in an error.
  EXPECT_NE(refusal("seed = 99999999999999999999"), "accepted");
  EXPECT_EQ(refusal("data.crop_pct = -1\ndata.image_size = 0\nlora.alpha = -1"), "accepted");
}

TEST(Config, WhatMustHoldBetweenKeys) {
  EXPECT_EQ(refusal("lora.targets = [\"proj\", \"qkv\", \"k\"]"),
            "run.toml:2: lora.targets: \"qkv\" already adapts \"k\"; name one of the two");
  EXPECT_EQ(refusal("lora.targets = [\"q\", \"q\"]"),
            "run.toml:2: lora.targets: \"q\" is named twice");
  EXPECT_NE(refusal("lora.targets = []").find("no weight is adapted"), std::string::npos);
  EXPECT_EQ(refusal("lora.layers = [3, 1, 3]"), "run.toml:2: lora.layers: 3 is named twice");
  EXPECT_EQ(refusal("lora.targets = [\"q\", \"k\", \"v\", \"fc2\"]"), "accepted");

  EXPECT_NE(
      refusal("penalty.form = \"raw2\"\npenalty.features = 1").find("\"raw2\" is defined for"),
      std::string::npos);
  EXPECT_EQ(refusal("penalty.form = \"raw2\"\npenalty.base = 1\npenalty.update = 1"), "accepted");
  EXPECT_NE(refusal("penalty.update = 0").find("which is method = \"dual\""), std::string::npos);

  const std::string fp8 = "train.frozen_precision = \"fp8\"";
  EXPECT_EQ(refusal(fp8), "accepted");
  EXPECT_EQ(refusal(fp8 + "\nprecision = \"bf16\""), "accepted");
  EXPECT_EQ(refusal(fp8 + "\nprecision = \"f32\""),
            "run.toml:2: train.frozen_precision: \"fp8\" goes with activations in bf16; set "
            "precision = \"bf16\"");
  EXPECT_EQ(
      refusal(fp8 + "\nlora.strategy = \"merged\""),
      "run.toml:2: train.frozen_precision: \"fp8\" does not go with lora.strategy = "
      "\"merged\", which puts the adapters into the products with the weights; set lora.strategy = "
      "\"unmerged\"");

  EXPECT_EQ(
      refusal("data.labels = {x = \"bb\"}"),
      "run.toml:2: data.labels: \"x\" = \"bb\": no such class in data.classes (a, b); did you "
      "mean 'b'?");
  EXPECT_NE(refusal_alone("rounds = 1").find("run.toml: data.classes: not set"), std::string::npos);
  EXPECT_EQ(refusal_alone("data.format = \"synthetic\""), "accepted");
  EXPECT_EQ(refusal_alone("data.classes = [\"a\", \"b\", \"a\"]"),
            "run.toml:1: data.classes: \"a\" is named twice");
  EXPECT_NE(refusal_alone("data.classes = [\"a\"]").find("one class alone"), std::string::npos);
  EXPECT_NE(refusal_alone("data.classes = [\"a\", \"\"]").find("empty name"), std::string::npos);
  EXPECT_NE(refusal("data.format = \"manifest\"").find("data.manifest: not set"),
            std::string::npos);
  EXPECT_NE(refusal("data.columns.label = \"\"").find("column with the labels"), std::string::npos);
  EXPECT_NE(
      refusal("data.format = \"synthetic\"\ndata.partition.kind = \"shards\"").find("of its own"),
      std::string::npos);

  for (const char* address :
       {"", "localhost", ":7733", "host:", "host:http", "host:65536", "host:-1"})
    EXPECT_NE(
        refusal("federation.address = \"" + std::string(address) + "\"").find("expected host:port"),
        std::string::npos)
        << address;
  for (const char* address : {"host:0", "10.0.0.1:65535", "[::1]:7733"})
    EXPECT_EQ(refusal("federation.address = \"" + std::string(address) + "\""), "accepted")
        << address;
  for (const char* name : {"", ".", "..", "a/b", "a b", "ä"})
    EXPECT_NE(
        refusal("federation.clients = [\"" + std::string(name) + "\"]").find("a client's name"),
        std::string::npos)
        << name;
  EXPECT_NE(refusal("federation.clients = [\"x\", \"x\"]").find("named twice"), std::string::npos);
  EXPECT_NE(refusal("federation.clients = [\"x\"]\ndata.partition.kind = \"shards\"")
                .find("names 1 clients, but data.partition.clients is 4"),
            std::string::npos);
}

TEST(Config, EpochsOrSteps) {
  EXPECT_EQ(parse("").train.epochs, 1);
  EXPECT_EQ(parse("train.steps = 20").train.epochs, 0);
  EXPECT_EQ(parse("train.epochs = 3", {"train.steps=20"}).train.epochs, 0);
  EXPECT_EQ(parse("train.steps = 20", {"train.epochs=3"}).train.steps, 0);
  EXPECT_NE(refusal("train.steps = 20\ntrain.epochs = 3").find("a round has one of them"),
            std::string::npos);
  EXPECT_NE(refusal("", {"train.steps=20", "train.epochs=3"}).find("a round has one of them"),
            std::string::npos);
  EXPECT_NE(refusal("train.epochs = 0").find("are both 0"), std::string::npos);
}

TEST(Config, TheMethodDecidesWhatWasLeftOpen) {
  EXPECT_EQ(parse("").penalty.update, 2);
  EXPECT_EQ(parse("penalty.form = \"abs_cosine\"").penalty.update, 2);
  const RunConfig features = parse("penalty.features = 0.5");
  EXPECT_EQ(features.penalty.update, 0);
  EXPECT_EQ(features.penalty.features, 0.5);

  Strings notes;
  const std::string tuned = "penalty.features = 0.5\nlora.personal_rank = 4\n";
  const RunConfig dual = parse(tuned, {"method=dual"}, &notes);
  EXPECT_FALSE(dual.penalty.any());
  EXPECT_EQ(dual.lora.personal_rank, 4);
  EXPECT_EQ(notes, Strings{"method dual has no penalty: the weights in [penalty] are set to 0"});
  for (const char* method : {"fedavg", "fedavg_ft", "local", "pooled"}) {
    const RunConfig c = parse(tuned, {std::string("method=") + method});
    EXPECT_FALSE(c.penalty.any()) << method;
    EXPECT_EQ(c.lora.personal_rank, -1) << method;
  }
  notes.clear();
  parse("", {"method=dual"}, &notes);
  EXPECT_EQ(notes, Strings{});
}

TEST(Config, PathsAreLookedForBesideTheFileThenInTheWorkingDirectory) {
  const Folder folder;
  folder.write("w.safetensors", "x");
  const fs::path file = folder.write(
      "run.toml", kClasses +
                      "model.weights = \"w.safetensors\"\nmodel.config = \"none/config.json\"\n"
                      "data.root = \"~/images/\"\ndata.manifest = \"m.csv\"\n");
  setenv("HOME", "/home/somebody", 1);
  const RunConfig c = load_config(file);
  EXPECT_EQ(c.model.weights, (folder.path() / "w.safetensors").string());
  EXPECT_EQ(c.model.config, (fs::current_path() / "none/config.json").string());
  EXPECT_EQ(c.data.root, "/home/somebody/images");
  EXPECT_EQ(c.data.manifest, "m.csv");
  EXPECT_EQ(c.federation.state_dir, "");
  // On the command line a path is what the shell shows.
  EXPECT_EQ(load_config(file, {"model.weights=w.safetensors"}).model.weights,
            (fs::current_path() / "w.safetensors").string());
  // Loaded again from another folder, the paths mean the same files.
  const Folder other;
  EXPECT_EQ(differing_keys(load_config(other.write("config.toml", config_toml(c))), c), Strings{});
}

TEST(Config, FilesThatCannotBeRead) {
  const Folder folder;
  EXPECT_THROW(load_config(folder.path() / "none.toml"), UserError);
  EXPECT_THROW(load_config(folder.path()), UserError);
}

TEST(Config, RequireSet) {
  RunConfig c = parse("");
  EXPECT_THROW(require_set(c, "model.weights"), UserError);
  EXPECT_THROW(require_set(c, "federation.clients"), UserError);
  c.model.weights = "w";
  EXPECT_NO_THROW(require_set(c, "model.weights"));
  EXPECT_THROW(require_set(c, "rounds"), Error);
}

// One below, at and above every bound: what the rule excludes is refused with one line that names
// the key; what it allows is taken, or refused in one line because of another key.
TEST(Config, EveryBoundIsKept) {
  const auto expect = [](const ConfigKey& key, const std::string& value, double number) {
    const std::string got = refusal(key.name + " = " + value);
    EXPECT_EQ(got.find('\n'), std::string::npos) << got;
    if (key.rule.range.contains(number))
      EXPECT_EQ(got.find(": expected a value"), std::string::npos) << key.name << " = " << value;
    else
      EXPECT_NE(got.find(key.name + ": expected a value"), std::string::npos)
          << key.name << " = " << value << ": " << got;
  };
  size_t bounds = 0;
  for (const ConfigKey& key : config_keys()) {
    RunConfig any;
    const ConfigField field = key.field(any);
    const bool whole =
        std::holds_alternative<int64_t*>(field) || std::holds_alternative<uint64_t*>(field);
    if (!whole && !std::holds_alternative<double*>(field)) continue;
    for (const double bound : {key.rule.range.low, key.rule.range.high}) {
      if (!std::isfinite(bound)) continue;
      ++bounds;
      for (const int side : {-1, 0, 1}) {
        if (whole) {
          const int64_t value = int64_t(bound) + side;
          expect(key, std::to_string(value), double(value));
        } else {
          const double value = side == 0 ? bound : std::nextafter(bound, side * HUGE_VAL);
          expect(key, number_literal(value), value);
        }
      }
    }
  }
  EXPECT_GE(bounds, 60u);  // the table was walked
}

TEST(Config, BoundsOfTheKernels) {
  const std::string wide = std::to_string(kMaxPenaltyRank + 1);
  EXPECT_EQ(refusal("lora.rank = " + std::to_string(kMaxPenaltyRank)), "accepted");
  EXPECT_NE(refusal("lora.rank = " + wide).find("run.toml:2: lora.rank: a penalty takes"),
            std::string::npos);
  EXPECT_NE(refusal("lora.personal_rank = " + wide).find("lora.personal_rank: a penalty takes"),
            std::string::npos);
  EXPECT_EQ(refusal("method = \"dual\"\nlora.rank = " + wide), "accepted");  // without a penalty
  EXPECT_NE(refusal("penalty.base_subspace_k = " + wide).find("expected a value"),
            std::string::npos);
  EXPECT_NE(refusal("data.workers = 0").find("expected a value"), std::string::npos);
}

// Another value than the default, allowed by the rule.
void change(const ConfigKey& key, RunConfig& config) {
  const ConfigField field = key.field(config);
  if (auto* const* text = std::get_if<std::string*>(&field)) {
    const auto& words = key.rule.words;
    **text = words.empty() ? key.rule.is_path ? "/a \"b\"\\c\n\x7f" : "x\ty" : words.back();
  } else if (const auto* choice = std::get_if<WordField>(&field)) {
    choice->set(choice->field, choice->words.size() - 1);
  } else if (auto* const* integer = std::get_if<int64_t*>(&field)) {
    **integer += **integer == key.rule.range.high ? -1 : 1;
    if (!key.rule.range.contains(static_cast<double>(**integer))) **integer = 13;
  } else if (auto* const* seed = std::get_if<uint64_t*>(&field)) {
    **seed = 9007199254740992u;
  } else if (auto* const* number = std::get_if<double*>(&field)) {
    **number = 1.0 / 3;  // takes all 17 digits
  } else if (auto* const* flag = std::get_if<bool*>(&field)) {
    **flag = !**flag;
  } else if (auto* const* strings = std::get_if<Strings*>(&field)) {
    **strings = key.rule.words.empty() ? Strings{"x", "y_2"} : Strings{"q", "fc2"};
  } else if (auto* const* integers = std::get_if<std::vector<int64_t>*>(&field)) {
    **integers = {3, 0};
  } else {
    *std::get<std::map<std::string, std::string>*>(field) = {{"own \"name\"", "x"}, {"z", "y_2"}};
  }
}

TEST(Config, WrittenAndReadBackItIsTheSame) {
  RunConfig config;
  for (const ConfigKey& key : config_keys()) change(key, config);
  // Where all keys at once contradict each other.
  config.method = "opal";
  config.train.steps = 0;
  config.train.frozen_precision = FrozenPrecision::same;
  config.penalty.form = PenaltyForm::cosine2;
  config.lora.strategy = AdapterStrategy::unmerged;
  config.data.format = DataFormat::npz;
  config.data.partition.clients = 2;
  config.federation.address = "[::1]:0";
  const RunConfig back = parse_config(config_toml(config), "config.toml");
  EXPECT_EQ(differing_keys(back, config), Strings{});
  EXPECT_EQ(config_toml(back), config_toml(config));
  // The comparison sees every key.
  for (const ConfigKey& key : config_keys()) {
    RunConfig changed;
    change(key, changed);
    EXPECT_EQ(differing_keys(changed, RunConfig{}), Strings{key.name});
  }
}

TEST(Config, TheTableIsSound) {
  std::set<std::string> names;
  for (const ConfigKey& key : config_keys()) {
    EXPECT_TRUE(names.insert(key.name).second) << key.name;
    EXPECT_TRUE(is_config_section(key.section())) << key.name;
    RunConfig config;
    // One field a key: were a row to repeat its neighbour's field, two keys would change together.
    RunConfig changed;
    change(key, changed);
    EXPECT_EQ(differing_keys(changed, RunConfig{}).size(), 1u) << key.name;
    // The default passes the key's own rule.
    const ConfigField field = key.field(config);
    if (auto* const* text = std::get_if<std::string*>(&field)) {
      const auto& words = key.rule.words;
      EXPECT_TRUE(words.empty() || std::find(words.begin(), words.end(), **text) != words.end())
          << key.name;
    } else if (auto* const* integer = std::get_if<int64_t*>(&field)) {
      EXPECT_TRUE(key.rule.range.contains(static_cast<double>(**integer))) << key.name;
    } else if (auto* const* number = std::get_if<double*>(&field)) {
      EXPECT_TRUE(key.rule.range.contains(**number)) << key.name;
    }
  }
}

TEST(Config, EveryFileInConfigsParsesForEveryMethod) {
  int files = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(OF_SOURCE_DIR) / "configs")) {
    if (entry.path().extension() != ".toml") continue;
    ++files;
    for (const char* method : {"opal", "dual", "fedavg", "fedavg_ft", "local", "pooled"}) {
      const RunConfig c = load_config(entry.path(), {std::string("method=") + method});
      EXPECT_FALSE(c.federation.clients.empty()) << entry.path();
      EXPECT_EQ(differing_keys(parse_config(config_toml(c), "config.toml"), c), Strings{});
    }
  }
  EXPECT_GE(files, 3);
}

TEST(Config, TheDocumentationIsCurrent) {
  const fs::path file = fs::path(OF_SOURCE_DIR) / "docs/configuration.md";
  EXPECT_TRUE(read(file) == config_markdown())
      << "docs/configuration.md is out of date: orthofed config --markdown > docs/configuration.md";
}

TEST(Config, Listings) {
  EXPECT_EQ(config_listing("train.lr"), "train.lr = 0.001\n    number: > 0\n    learning rate\n");
  EXPECT_NE(config_listing("data").find("data.columns.path"), std::string::npos);
  EXPECT_EQ(config_listing("data").find("train.lr"), std::string::npos);
  EXPECT_THROW(config_listing("dta"), UserError);
  EXPECT_EQ(config_json("train.lr"),
            "[{\"key\": \"train.lr\", \"type\": \"number\", \"default\": \"0.001\", "
            "\"allowed\": \"> 0\", \"help\": \"learning rate\"}]\n");
}

}  // namespace
}  // namespace orthofed
