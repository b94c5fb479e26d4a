// The commands as their users run them: processes, real files, real sockets on loopback. Two small
// sites, of which one never sees one of the three classes; a random ViT for 16 px images.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "engine/io/files.h"
#include "engine/io/npz.h"
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
using test::eventually;
using test::Process;
using Words = std::vector<std::string>;

const Words kClasses = {"red", "green", "blue"};
constexpr int64_t kSize = 16;

// u8 [16, 16, 3]: noise with one channel lifted.
Tensor picture(int64_t label, uint64_t seed) {
  std::vector<uint8_t> pixels(kSize * kSize * 3);
  for (size_t i = 0; i < pixels.size(); ++i)
    pixels[i] = uint8_t(Philox{seed}(i)[0] % 128 + (int64_t(i % 3) == label ? 120 : 0));
  return Tensor::of(pixels, {int64_t(pixels.size())}).reshape({kSize, kSize, 3});
}

// What all tests read and none changes: base models, images, configuration.
struct World {
  test::TemporaryDirectory dir;
  std::string base, headed, manifest, config;

  World() {
    VitConfig tiny{
        .image_size = kSize, .patch = 8, .dim = 12, .depth = 2, .heads = 3, .mlp_dim = 24};
    base = save_base(Vit::create(tiny, DType::f32, 1), dir / "base");
    tiny.classes = 3;
    headed = save_base(Vit::create(tiny, DType::f32, 2), dir / "headed");

    uint64_t seed = 0;
    manifest = "path,label,client,split\n";
    for (const std::string client : {"a", "b"})
      for (const std::string split : {"train", "test"})
        for (int64_t label = 0; label < (client == "a" ? 3 : 2); ++label) {
          const std::string folder = client + "/" + split + "/" + kClasses[size_t(label)];
          make_directories(dir / ("images/" + folder));
          for (int i = 0; i < (split == "train" ? 6 : 3); ++i) {
            const std::string path = folder + "/" + std::to_string(i) + ".png";
            save_png(dir / ("images/" + path), picture(label, ++seed));
            manifest += path + "," + kClasses[size_t(label)] + "," + client + "," + split + "\n";
          }
        }
    write_file(dir / "images/manifest.csv", manifest);
    config = dir / "run.toml";
    write_file(config, settings());
  }

  std::string settings(const std::string& clients = R"("a", "b")") const {
    return R"(method = "opal"
rounds = 2
threads = 1
precision = "f32"
[model]
weights = "base/model.safetensors"
[lora]
rank = 2
[train]
batch_size = 4
[data]
root = "images"
manifest = "manifest.csv"
classes = ["red", "green", "blue"]
[federation]
clients = [)" +
           clients + "]\n";
  }
};

const World& world() {
  static const World w;
  return w;
}

// A test's own folder, and the program started from it.
class Commands : public testing::Test {
 protected:
  std::string at(const std::string& name) const { return mine_ / name; }

  std::unique_ptr<Process> start(Words arguments) {
    arguments.insert(arguments.begin(), OF_BINARY_DIR "/bin/orthofed");
    return std::make_unique<Process>(arguments, at("stream" + std::to_string(++started_)));
  }
  std::unique_ptr<Process> ended(const Words& arguments) {
    auto process = start(arguments);
    process->status();
    return process;
  }
  // A success that says nothing.
  void succeed_quietly(Words arguments) {
    arguments.push_back("--quiet");
    const auto process = ended(arguments);
    EXPECT_EQ(process->status(), 0) << process->err();
    EXPECT_EQ(process->out(), "");
    EXPECT_EQ(process->err(), "");
  }
  // A success with one JSON document on standard output, and JSON lines on standard error.
  json succeed_with_json(Words arguments) {
    arguments.push_back("--json");
    const auto process = ended(arguments);
    EXPECT_EQ(process->status(), 0) << process->err();
    return parsed(*process);
  }
  static json parsed(const Process& process) {
    std::istringstream events(process.err());
    for (std::string line; std::getline(events, line);)
      EXPECT_TRUE(json::accept(line)) << "standard error: " << line;
    const std::string out = process.out();
    EXPECT_TRUE(json::accept(out)) << "standard output: " << out;
    return json::parse(out, nullptr, false);
  }
  // The user's mistake: status 2, nothing on standard output, and one line that holds all parts.
  void refuse(const Words& arguments, const Words& parts) {
    const auto process = ended(arguments);
    const std::string err = process->err();
    EXPECT_EQ(process->status(), 2) << err;
    EXPECT_EQ(process->out(), "");
    EXPECT_TRUE(err.starts_with("orthofed: ")) << err;
    EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
    for (const std::string& part : parts)
      EXPECT_NE(err.find(part), std::string::npos) << "'" << part << "' is not in: " << err;
  }
  // The same of a command that writes to --out: the folder is not there afterwards.
  void refuse_without_traces(Words arguments, const Words& parts) {
    arguments.insert(arguments.end(), {"--out", at("traces")});
    refuse(arguments, parts);
    EXPECT_FALSE(fs::exists(at("traces"))) << arguments[0];
  }

  // A copy of the world's images that may be spoilt, and a configuration beside it.
  std::string own_images(const std::string& manifest) {
    fs::copy(world().dir / "images", at("images"), fs::copy_options::recursive);
    write_file(at("images/manifest.csv"), manifest);
    write_file(at("own.toml"), world().settings());
    return at("own.toml");
  }
  static Words with(Words words, const Words& more) {
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  static Words with_base(const Words& words) {
    return with(words, {"--set", "model.weights=" + world().base});
  }
  std::string spoilt_weights(const std::string& name,
                             const std::function<void(TensorMap&)>& spoil) {
    TensorMap tensors = load_safetensors(world().base).tensors;
    spoil(tensors);
    make_directories(at(name));
    fs::copy(world().dir / "base/config.json", at(name + "/config.json"));
    save_safetensors(at(name + "/model.safetensors"), tensors);
    return at(name + "/model.safetensors");
  }
  Words predict(const std::string& weights) {
    return {
        "predict",     "--weights", weights,    "--input",          world().dir / "images/a/test",
        "--precision", "f32",       "--output", at("y.safetensors")};
  }

  test::TemporaryDirectory mine_;

 private:
  int started_ = 0;
};

// ---- What works ---------------------------------------------------------------------------------

TEST_F(Commands, PredictReadsFoldersFilesAndArrays) {
  const std::string folder = world().dir / "images/a/test";
  const json said = succeed_with_json(with(predict(world().headed), {"--csv", at("y.csv")}));
  EXPECT_EQ(said.at("images"), 9);
  EXPECT_EQ(said.at("features"), 12);
  EXPECT_EQ(said.at("classes"), 3);
  const TensorMap all = load_safetensors(at("y.safetensors")).tensors;
  EXPECT_EQ(all.at("features").shape(), Shape({9, 12}));
  EXPECT_EQ(all.at("logits").shape(), Shape({9, 3}));

  // path, class, then a probability a class: each row sums to 1, and the class is the largest.
  std::istringstream csv(contents(at("y.csv")));
  std::string line;
  std::getline(csv, line);
  EXPECT_EQ(line, "path,class,0,1,2");
  int64_t row = 0;
  for (; std::getline(csv, line); ++row) {
    std::istringstream fields(line);
    std::string path, name, value;
    std::getline(fields, path, ',');
    std::getline(fields, name, ',');
    EXPECT_TRUE(path.starts_with(folder)) << path;
    std::vector<double> p;
    while (std::getline(fields, value, ',')) p.push_back(std::stod(value));
    ASSERT_EQ(p.size(), 3u);
    EXPECT_NEAR(p[0] + p[1] + p[2], 1, 1e-5);
    EXPECT_EQ(name, std::to_string(std::max_element(p.begin(), p.end()) - p.begin()));
  }
  EXPECT_EQ(row, 9);

  // The same pixels from two files and from an array.
  const auto features = [&](const Words& input) {
    Words w = {"predict",           "--weights",   world().headed, "--output",
               at("z.safetensors"), "--precision", "f32"};
    for (const std::string& i : input) w.insert(w.end(), {"--input", i});
    succeed_quietly(w);
    return load_safetensors(at("z.safetensors")).tensors.at("features").to_vector();
  };
  const auto two = features({folder + "/red/1.png", folder + "/red/0.png"});
  const std::vector<double> expected = all.at("features").to_vector();
  ASSERT_EQ(two.size(), 24u);
  // The folder's order is by name: blue, green, red. Another batch may be summed in another order.
  for (size_t i = 0; i < 12; ++i) {
    EXPECT_NEAR(two[12 + i], expected[6 * 12 + i], 1e-5);
    EXPECT_NEAR(two[i], expected[7 * 12 + i], 1e-5);
  }

  std::vector<uint8_t> pixels;
  for (int i = 0; i < 3; ++i)
    for (double v : picture(i, 77).to_vector()) pixels.push_back(uint8_t(v));
  const Tensor array = Tensor::of(pixels, {int64_t(pixels.size())}).reshape({3, kSize, kSize, 3});
  save_npz(at("x.npz"), {{"images", array}});
  save_png(at("same.png"), picture(2, 77));
  const auto from_array = features({at("x.npz")}), from_file = features({at("same.png")});
  ASSERT_EQ(from_array.size(), 36u);
  for (size_t i = 0; i < 12; ++i) EXPECT_NEAR(from_file[i], from_array[24 + i], 1e-5);
}

// The GPU's kernels, emulated, with the device's memory closed to everything else.
TEST_F(Commands, TheEmulatedDevicePredictsAndScores) {
  succeed_quietly(predict(world().headed));
  const TensorMap want = load_safetensors(at("y.safetensors")).tensors;
  setenv("OF_SIMT_GUARD", "1", 1);
  for (const Words& watched : {Words{}, Words{"--shadow", "cpu"}, Words{"--check-finite"}}) {
    Words w = with(predict(world().headed), {"--device", "simt"});
    w.insert(w.end(), watched.begin(), watched.end());
    succeed_quietly(w);
    const TensorMap got = load_safetensors(at("y.safetensors")).tensors;
    for (const char* name : {"features", "logits"})
      EXPECT_LE(test::relative_norm(got.at(name), want.at(name)), 1e-5) << name;
  }
  const json summary =
      succeed_with_json({"run", world().config, "--set", "rounds=1", "--set", "train.epochs=0",
                         "--set", "train.steps=1", "--set", "device=simt", "--out", at("simt")});
  EXPECT_EQ(summary.at("device"), "simt");
  const json scores = succeed_with_json({"eval", world().config, "--set", "device=simt", "--client",
                                         "a", "--adapter", at("simt/general_adapter.safetensors")});
  EXPECT_TRUE(scores.contains("balanced_accuracy")) << scores;
  unsetenv("OF_SIMT_GUARD");
  refuse(with(predict(world().headed), {"--shadow", "cpu", "--device", "cpu"}), {"shadow", "simt"});
}

// --profile looks and touches nothing; its trace holds slices that lie within each other.
TEST_F(Commands, AProfiledRunTrainsTheSameAdapter) {
  const Words train = {"train", world().config, "--set", "data.client=a", "--out"};
  succeed_quietly(with(train, {at("plain")}));
  const auto profiled = ended(with(train, {at("profiled"), "--profile=4"}));
  ASSERT_EQ(profiled->status(), 0) << profiled->err();
  for (const char* part : {"packed_matmul", "attention_backward", "adamw", "between kernels",
                           "mean of 4 steps on device cpu"})
    EXPECT_NE(profiled->out().find(part), std::string::npos) << profiled->out();
  const std::string adapter = "/personal_adapter.safetensors";
  EXPECT_EQ(contents(at("plain" + adapter)), contents(at("profiled" + adapter)));
  EXPECT_FALSE(fs::exists(at("plain/trace.json")));

  const json trace = json::parse(contents(at("profiled/trace.json")), nullptr, false);
  ASSERT_TRUE(trace.is_object());
  std::vector<double> ends;  // of the slices that are open
  int64_t steps = 0;
  double gelu_flops = 0;
  for (const json& slice : trace.at("traceEvents")) {
    const double begin = slice.at("ts"), end = begin + double(slice.at("dur"));
    while (!ends.empty() && ends.back() <= begin + 1e-4) ends.pop_back();
    EXPECT_TRUE(ends.empty() || end <= ends.back() + 1e-3) << slice;  // us, in doubles
    ends.push_back(end);
    steps += slice.at("name") == "step";
    if (slice.at("name") == "attention_forward") {
      // 4 images, 5 tokens, 3 heads of 4: sizes that stand in a struct.
      EXPECT_NE(std::string(slice.at("args").at("sizes")).find("4 5 3 4 "), std::string::npos);
    }
    if (slice.at("name") == "gelu_forward") {
      gelu_flops += double(slice.at("args").at("flops"));
    }
  }
  EXPECT_EQ(steps, 4);
  // 4 images of 5 tokens in the first block; the last computes their class tokens alone.
  EXPECT_EQ(gelu_flops, 4 * 45 * 24 * (20 + 4));

  refuse_without_traces({"train", world().config, "--profile=0"}, {"--profile"});
  refuse_without_traces({"train", world().config, "--profile=few"}, {"few"});
  refuse_without_traces({"train", world().config, "--profile", "--check-finite"}, {"--profile"});
}

// configs/demo.toml as the demo runs it (processes, the demo's geometry), only smaller: one step of
// SGD, whose result does not amplify the order of a sum, at two sites on an untrained base.
TEST_F(Commands, TheDemosFederationRunsOnTheEmulatedDevice) {
  const std::string base = save_base(Vit::create(demo_geometry(), DType::f32, 3), at("base"));
  const auto run = [&](const std::string& device) {
    Words words = {"run", OF_SOURCE_DIR "/configs/demo.toml", "--out", at(device)};
    const Words settings = {"model.weights=" + base,
                            "device=" + device,
                            "precision=f32",
                            "rounds=1",
                            "train.epochs=0",
                            "train.steps=1",
                            "train.batch_size=2",
                            "train.optimizer=sgd",
                            "train.warmup=0",
                            "data.synthetic.clients=2",
                            "data.synthetic.train=2",
                            "data.synthetic.test=1",
                            "federation.clients=[\"site_a\", \"site_b\"]"};
    for (const std::string& setting : settings) {
      words.push_back("--set");
      words.push_back(setting);
    }
    succeed_quietly(words);
    return load_safetensors(at(device + "/general_adapter.safetensors")).tensors;
  };
  const TensorMap want = run("cpu"), got = run("simt");
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, tensor] : want)
    EXPECT_LE(test::relative_norm(got.at(name), tensor), 1e-4) << name;
}

TEST_F(Commands, CheckCountsAndSendsNothing) {
  const json all = succeed_with_json({"check", world().config});
  EXPECT_TRUE(all.at("clean"));
  EXPECT_EQ(all.at("images"), 45);
  EXPECT_EQ(all.at("counts").at("b").at("train"), json({6, 6, 0}));
  EXPECT_GT(all.at("cost").at("bytes_sent"), 0);
  succeed_quietly({"check", world().config, "--client", "b"});
  const auto text = ended({"check", world().config, "--client", "b"});
  EXPECT_EQ(text->status(), 0);
  EXPECT_NE(text->out().find("nothing was sent"), std::string::npos) << text->out();
}

TEST_F(Commands, CheckNamesWhatIsWrong) {
  std::string manifest = world().manifest;
  manifest += "copy.png,red,a,test\nbroken.png,red,a,train\n";
  own_images(manifest);
  fs::copy(at("images/a/train/red/0.png"), at("images/copy.png"));
  write_file(at("images/broken.png"), "not an image");
  const Words words = with_base({"check", at("own.toml"), "--client", "a"});
  const auto process = ended(words);
  EXPECT_EQ(process->status(), 2);
  EXPECT_NE(process->out().find("broken.png"), std::string::npos) << process->out();
  EXPECT_NE(process->out().find("test: copy.png"), std::string::npos) << process->out();
  EXPECT_EQ(ended(with(words, {"--quiet"}))->err(),
            "orthofed: check: unreadable images: 1, exact copies in more than one split: 1; mend "
            "this before joining (nothing was sent)\n");
}

TEST_F(Commands, TrainThenEval) {
  const Words train = {"train", world().config, "--set", "data.client=a", "--out", at("a")};
  const json summary = succeed_with_json(train);
  EXPECT_EQ(summary.at("method"), "local");
  EXPECT_EQ(summary, json::parse(contents(at("a/summary.json"))));
  EXPECT_EQ(summary.at("clients")[0].at("train"), 18);
  EXPECT_FALSE(contents(at("a/metrics.jsonl")).empty());

  const json scores = succeed_with_json(
      {"eval", world().config, "--client", "a", "--adapter", at("a/personal_adapter.safetensors")});
  EXPECT_EQ(scores.at("samples"), 9);
  EXPECT_EQ(scores.at("confusion"), summary.at("clients")[0].at("confusion"));
  EXPECT_EQ(scores.at("balanced_accuracy"), summary.at("clients")[0].at("balanced_accuracy"));

  // The trained adapter names its classes.
  succeed_quietly(with(predict(world().base),
                       {"--adapter", at("a/personal_adapter.safetensors"), "--csv", at("c.csv")}));
  EXPECT_TRUE(contents(at("c.csv")).starts_with("path,class,red,green,blue\n"));

  refuse(train, {at("a"), "another folder"});  // already used
}

// At a site of its own the manifest need not name the site; where several clients read one manifest
// it must.
TEST_F(Commands, AManifestWithoutClients) {
  std::string manifest = "path,label,split\n";
  for (const std::string split : {"train", "test"})
    for (int i = 0; i < 3; ++i)
      manifest += "b/" + split + "/green/" + std::to_string(i) + ".png,green," + split + "\n";
  const std::string config = own_images(manifest);
  const auto without_clients = [&](const Words& words) {
    return with_base(with(words, {"--set", "data.columns.client="}));
  };
  const json found = succeed_with_json(without_clients({"check", config, "--client", "b"}));
  EXPECT_EQ(found.at("counts").at("b").at("train"), json({0, 3, 0}));
  refuse_without_traces(without_clients({"run", config, "--quiet"}), {"client 'a'", "no images"});
}

// One federation in four ways: processes twice, threads, and serve and join by hand.
TEST_F(Commands, AFederationIsTheSameHoweverItIsRun) {
  const auto run = [&](const std::string& out) {
    return Words{"run", world().config, "--out", at(out)};
  };
  const json summary = succeed_with_json(run("one"));
  // A profile looks and touches nothing.
  const auto two = ended(with(run("two"), {"--profile=2"}));
  EXPECT_EQ(two->status(), 0) << two->err();
  for (const char* part :
       {", which trained longest", "adamw", "mean of 2 steps", "balanced", "waiting", "server"})
    EXPECT_NE(two->out().find(part), std::string::npos) << two->out();
  succeed_quietly(with(run("threads"), {"--in-process", "--profile=2"}));
  for (const char* folder : {"two/clients/a", "two/clients/b", "threads/clients/b"}) {
    EXPECT_NE(contents(at(std::string(folder) + "/profile.txt")).find("mean of 2 steps"),
              std::string::npos);
    EXPECT_TRUE(json::accept(contents(at(std::string(folder) + "/trace.json"))));
  }

  auto server = start({"serve", world().config, "--set", "federation.address=127.0.0.1:0", "--out",
                       at("served"), "--json"});
  std::string port;
  const std::string said = "listening on port ";
  ASSERT_TRUE(eventually([&] {
    const std::string err = server->err();
    const size_t found = err.find(said);
    if (found == std::string::npos || err.find(';', found) == std::string::npos) return false;
    port = err.substr(found + said.size(), err.find(';', found) - found - said.size());
    return true;
  })) << server->err();
  const auto join = [&](const std::string& client) {
    return start({"join", world().config, "--client", client, "--set",
                  "federation.address=127.0.0.1:" + port, "--out", at("served/clients/" + client),
                  "--json"});
  };
  auto b = join("b"), a = join("a");
  EXPECT_EQ(a->status(), 0) << a->err();
  EXPECT_EQ(b->status(), 0) << b->err();
  EXPECT_EQ(server->status(), 0) << server->err();
  const json of_a = parsed(*a);
  EXPECT_EQ(of_a.at("client"), "a");
  EXPECT_EQ(of_a.at("balanced_accuracy"), summary.at("clients")[0].at("balanced_accuracy"));
  EXPECT_EQ(parsed(*server).at("clients").size(), 2u);
  EXPECT_FALSE(fs::exists(at("served/clients/a/profile.txt")));
  for (const json& time : {of_a.at("time"), summary.at("clients")[0].at("time")})
    for (const char* part : {"set_up", "training", "evaluation", "saving", "waiting"})
      EXPECT_GE(time.at(part), 0) << time;
  EXPECT_GT(of_a.at("time").at("training"), 0);
  EXPECT_GT(summary.at("time").at("joining"), 0);

  for (const std::string other : {"two", "threads", "served"})
    for (const std::string file :
         {"general_adapter.safetensors", "clients/a/personal_adapter.safetensors",
          "clients/b/personal_adapter.safetensors"}) {
      const std::string expected = contents(at("one/" + file));
      EXPECT_GT(expected.size(), 1000u) << file;
      EXPECT_TRUE(contents(at(other + "/" + file)) == expected) << other << "/" << file;
    }

  // A class that a site has never seen is no fault: it is not scored there.
  const json& site_b = summary.at("clients")[1];
  EXPECT_EQ(site_b.at("train"), 12);
  EXPECT_EQ(site_b.at("confusion")[2], json({0, 0, 0}));
  EXPECT_TRUE(site_b.at("balanced_accuracy").is_number());

  refuse(run("one"), {at("one"), "summary.json", "another folder"});
  refuse({"join", world().config, "--client", "a", "--out", at("served/clients/a")},
         {at("served/clients/a"), "metrics.json", "another folder"});
  // It can be repeated from what it wrote.
  succeed_quietly({"run", at("one/config.toml"), "--out", at("again")});
  EXPECT_TRUE(contents(at("again/general_adapter.safetensors")) ==
              contents(at("one/general_adapter.safetensors")));
  EXPECT_EQ(succeed_with_json({"report", mine_.path()}).size(), 1u);
  const json times = succeed_with_json({"report", mine_.path(), "--time"});
  EXPECT_EQ(times.size(), 5u);
  EXPECT_EQ(times.at(at("one")).at("time"), summary.at("time"));
  EXPECT_FALSE(times.at(at("one")).contains("rounds"));
  const json by_round =
      succeed_with_json({"report", at("one"), "--time", "--rounds"}).at(at("one")).at("rounds");
  EXPECT_EQ(by_round.size(), summary.at("rounds"));
  for (size_t r = 0; r < by_round.size(); ++r) {
    EXPECT_EQ(by_round[r].at("time"), summary.at("time_by_round")[r]);
    EXPECT_EQ(by_round[r].at("clients").size(), summary.at("clients").size());
    EXPECT_GT(by_round[r].at("clients").at("a").at("total"), 0);
  }
  const auto tables = ended({"report", at("one"), "--time", "--rounds"});
  EXPECT_NE(tables->out().find("\nround 1 of "), std::string::npos) << tables->out();
  refuse({"report", at("one"), "--rounds"}, {"--rounds", "--time"});
  const auto bars = ended({"report", at("one"), "--time"});
  EXPECT_NE(bars->out().find("T training"), std::string::npos) << bars->out();
}

TEST_F(Commands, ProgressEndsWithOneLine) {
  const auto process = ended({"predict", "--weights", world().headed, "--input",
                              world().dir / "images", "--output", at("y.safetensors")});
  const std::string err = process->err();
  const size_t first = err.find("45/45 images");
  ASSERT_NE(first, std::string::npos) << err;
  EXPECT_EQ(err.find("45/45 images", first + 1), std::string::npos) << err;
}

// ---- Bad input ----------------------------------------------------------------------------------

TEST_F(Commands, Weights) {
  const std::string absent = at("nowhere/model.safetensors");
  refuse(predict(absent), {absent, "check the path"});
  refuse_without_traces({"run", world().config, "--set", "model.weights=" + absent},
                        {absent, "check the path"});
  refuse_without_traces({"serve", world().config, "--set", "model.weights=" + absent}, {absent});
  refuse_without_traces({"run", world().config, "--set", "model.weights="}, {"model.weights"});

  const std::string cut = spoilt_weights("cut", [](TensorMap&) {});
  fs::resize_file(cut, fs::file_size(cut) / 2);
  refuse(predict(cut), {cut});

  const std::string narrow = spoilt_weights("narrow", [](TensorMap& t) {
    t["blocks.1.mlp.fc2.weight"] = Tensor::full({12, 23}, DType::f32, 0.1);
  });
  refuse(predict(narrow), {narrow, "'blocks.1.mlp.fc2.weight'", "[12, 23]", "[12, 24]"});

  const std::string nan = spoilt_weights("nan", [](TensorMap& t) {
    t["norm.bias"] = Tensor::full({12}, DType::f32, std::numeric_limits<double>::quiet_NaN());
  });
  refuse(predict(nan), {nan, "'norm.bias'", "NaN", "again"});
  refuse_without_traces({"run", world().config, "--set", "model.weights=" + nan},
                        {nan, "'norm.bias'"});
  EXPECT_FALSE(fs::exists(at("y.safetensors")));
}

TEST_F(Commands, AnAdapterOfAnotherBaseModel) {
  succeed_quietly(
      {"train", world().config, "--set", "data.client=a", "--set", "rounds=1", "--out", at("a")});
  refuse(with(predict(world().headed), {"--adapter", at("a/personal_adapter.safetensors")}),
         {"personal_adapter.safetensors", "another base model"});
  refuse(with(predict(world().base), {"--adapter", world().base}),
         {world().base, "not an adapter"});
}

TEST_F(Commands, Configuration) {
  refuse_without_traces({"run", world().config, "--set", "train.lrr=1"},
                        {"train.lrr", "'train.lr'"});
  write_file(at("typo.toml"), "metod = \"opal\"\n" + world().settings());
  refuse_without_traces({"run", at("typo.toml")}, {"typo.toml:1", "'metod'", "'method'"});
  refuse_without_traces({"run", at("none.toml")}, {at("none.toml"), "configuration file"});
  refuse({"join", world().config, "--client", "c"}, {"'c'", "federation.clients", "a, b"});
  refuse(with(predict(world().base), {"--csv", at("y.csv")}), {"--csv", "no classes"});
  refuse(with(predict(world().headed), {"--csv", at("none/y.csv")}),
         {at("none"), "check the path"});
}

TEST_F(Commands, AnImageThatIsNone) {
  const std::string config = own_images(world().manifest);
  write_file(at("images/a/train/green/3.png"), "not an image");
  const auto train = [&](const std::string& set, const std::string& out) {
    return with_base(
        {"train", config, "--set", "data.client=a", "--quiet", "--set", set, "--out", at(out)});
  };
  const auto skipped = ended(train("rounds=1", "skipped"));
  EXPECT_EQ(skipped->status(), 0) << skipped->err();
  EXPECT_TRUE(skipped->err().starts_with("warning: ")) << skipped->err();
  EXPECT_NE(skipped->err().find("a/train/green/3.png"), std::string::npos) << skipped->err();
  EXPECT_EQ(json::parse(contents(at("skipped/summary.json"))).at("clients")[0].at("train"), 17);

  refuse(train("data.on_bad_image=refuse", "refused"), {"a/train/green/3.png"});
  EXPECT_FALSE(fs::exists(at("refused")));

  // In a federation the server's terminal says it too; a refusal names the client.
  const auto run =
      ended(with_base({"run", config, "--set", "rounds=1", "--quiet", "--out", at("federation")}));
  EXPECT_EQ(run->status(), 0) << run->err();
  EXPECT_TRUE(run->err().starts_with("warning: a: ")) << run->err();
  EXPECT_NE(run->err().find("a/train/green/3.png"), std::string::npos) << run->err();
  refuse_without_traces(with_base({"run", config, "--set", "data.on_bad_image=refuse", "--quiet"}),
                        {"client 'a'", "a/train/green/3.png"});
}

TEST_F(Commands, LabelsAndFilesOfAManifest) {
  std::string manifest = world().manifest;
  const std::string config = own_images(manifest + "a/train/red/0.png,gren,a,train\n");
  refuse(with_base({"check", config}),
         {"manifest.csv line 47", "'gren'", "'green'", "data.labels"});
  refuse_without_traces(with_base({"run", config, "--quiet"}), {"manifest.csv line 47", "'gren'"});
  // A site's own names are mapped, not guessed.
  succeed_quietly(with_base({"check", config, "--client", "b", "--set", "data.labels.gren=green"}));

  write_file(at("images/manifest.csv"), manifest + "gone.png,red,b,train\nlost.png,red,b,test\n");
  refuse_without_traces(with_base({"run", config, "--quiet"}),
                        {"manifest.csv line 47", "gone.png", "1 other", "data.root"});
}

TEST_F(Commands, AnEmptyClient) {
  write_file(at("empty.toml"), world().settings(R"("a", "b", "c")"));
  const Words more = {"--set", "data.root=" + (world().dir / "images"), "--set",
                      "model.weights=" + world().base, "--quiet"};
  refuse_without_traces(with({"run", at("empty.toml")}, more), {"client 'c'", "no images"});
  refuse(with({"join", at("empty.toml"), "--client", "c", "--out", at("c")}, more),
         {"client 'c'", "no images"});
  EXPECT_FALSE(fs::exists(at("c")));
}

// A port of loopback that stays taken, or is free and silent, while this lives.
class Port {
 public:
  explicit Port(bool listening) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    OF_CHECK(::bind(socket_, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
                 (!listening || ::listen(socket_, 1) == 0) &&
                 ::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size) == 0,
             "a port");
    address_ = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  }
  ~Port() { ::close(socket_); }
  const std::string& address() const { return address_; }

 private:
  int socket_;
  std::string address_;
};

TEST_F(Commands, Addresses) {
  const Port taken(true), silent(false);
  refuse_without_traces(
      {"serve", world().config, "--quiet", "--set", "federation.address=" + taken.address()},
      {taken.address(), "another port"});
  refuse_without_traces(
      {"join", world().config, "--client", "a", "--quiet", "--set",
       "federation.address=" + silent.address(), "--set", "federation.join_timeout_seconds=0.3"},
      {silent.address(), "start the server"});
  refuse_without_traces({"serve", world().config, "--set", "method=pooled"},
                        {"pooled", "orthofed run"});
}

// What checks every kernel call is asked for in this process and handed on to those it starts.
TEST_F(Commands, ClientsThatAreProcessesCheckTheirCallsToo) {
  const std::string huge = spoilt_weights("huge", [](TensorMap& t) {
    Tensor& weight = t.at("blocks.0.mlp.fc1.weight");
    weight = Tensor::full(weight.shape(), DType::f32, 3e38);
  });
  make_directories(at("run"));  // a folder that was there stays, and the clients' logs in it
  const auto run = ended({"run", world().config, "--set", "model.weights=" + huge, "--out",
                          at("run"), "--check-finite", "--quiet"});
  EXPECT_EQ(run->status(), 1) << run->err();
  const std::string said =
      contents(at("run/clients/a/log.txt")) + contents(at("run/clients/b/log.txt"));
  EXPECT_NE(said.find("of an output became"), std::string::npos) << said << run->err();
}

TEST_F(Commands, AResultThatCannotBeWritten) {
  make_directories(at("taken/general_adapter.safetensors/by a folder"));
  refuse({"run", world().config, "--out", at("taken"), "--quiet"},
         {at("taken/general_adapter.safetensors")});
  EXPECT_FALSE(fs::exists(at("taken/summary.json")));
}

TEST_F(Commands, AClientWithAnotherBaseModelOrOtherSettings) {
  auto server = start({"serve", world().config, "--set", "federation.address=127.0.0.1:0", "--out",
                       at("served"), "--set", "federation.join_timeout_seconds=100"});
  const std::string said = "listening on port ";
  ASSERT_TRUE(eventually([&] { return server->err().find("; waiting") != std::string::npos; }))
      << server->err();
  const std::string port =
      std::to_string(std::stoi(server->err().substr(server->err().find(said) + said.size())));
  const std::string other = spoilt_weights(
      "other", [](TensorMap& t) { t["norm.bias"] = Tensor::full({12}, DType::f32, 1); });
  refuse_without_traces({"join", world().config, "--client", "a", "--quiet", "--set",
                         "federation.address=127.0.0.1:" + port, "--set", "model.weights=" + other},
                        {"base model differs", "model.weights", "127.0.0.1:" + port});
  refuse_without_traces({"join", world().config, "--client", "a", "--quiet", "--set",
                         "federation.address=127.0.0.1:" + port, "--set", "method=dual"},
                        {"method differs", "opal", "dual"});
  refuse_without_traces({"join", world().config, "--client", "a", "--quiet", "--set",
                         "federation.address=127.0.0.1:" + port, "--set", "train.lr=0.5"},
                        {"other settings: train.lr = ", "(here 0.5)"});
  EXPECT_NE(server->err().find("base model differs"), std::string::npos) << server->err();
  server->signal(SIGTERM);
  EXPECT_EQ(server->status(), 128 + SIGTERM);
}

// ---- Failures in the middle ---------------------------------------------------------------------

// Processes whose arguments hold `word`, this one excluded, with the arguments joined by spaces.
std::vector<std::pair<pid_t, std::string>> processes_with(const std::string& word) {
  std::vector<std::pair<pid_t, std::string>> found;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::string line = contents(entry.path() / "cmdline");
    std::replace(line.begin(), line.end(), '\0', ' ');
    if (line.find(word) != std::string::npos && std::stoi(name) != getpid())
      found.emplace_back(std::stoi(name), line);
  }
  return found;
}

TEST_F(Commands, AClientThatIsKilledEndsTheRun) {
  auto run =
      start({"run", world().config, "--set", "rounds=100000", "--quiet", "--out", at("run")});
  // In the middle: both clients have trained, and written what a run leaves behind.
  ASSERT_TRUE(eventually([&] {
    return fs::exists(at("run/metrics.jsonl")) && contents(at("run/metrics.jsonl")).size() > 1000;
  })) << run->err();
  pid_t b = 0;
  for (const auto& [pid, line] : processes_with(at("run/clients")))
    if (line.find("--client b") != std::string::npos) b = pid;
  ASSERT_NE(b, 0);
  ASSERT_EQ(::kill(b, SIGKILL), 0);

  EXPECT_EQ(run->status(), 1);
  EXPECT_NE(run->err().find("client 'b' was killed by signal 9"), std::string::npos) << run->err();
  EXPECT_EQ(run->out(), "");
  EXPECT_TRUE(eventually([&] { return processes_with(at("run")).empty(); }, 10));

  // What is left is whole: tensors that load, lines that parse, no temporary file.
  EXPECT_FALSE(fs::exists(at("run/summary.json")));
  for (const auto& entry : fs::recursive_directory_iterator(at("run"))) {
    if (!entry.is_regular_file()) continue;
    const std::string path = entry.path();
    if (path.ends_with(".safetensors")) {
      EXPECT_NO_THROW(load_safetensors(path)) << path;
    } else if (path.ends_with(".jsonl")) {
      std::istringstream lines(contents(path));
      for (std::string line; std::getline(lines, line);) EXPECT_TRUE(json::accept(line)) << line;
    } else {
      EXPECT_TRUE(path.ends_with("/config.toml") || path.ends_with("/log.txt")) << path;
    }
  }
}

TEST_F(Commands, ARunThatIsEndedTakesItsClientsAlong) {
  auto run =
      start({"run", world().config, "--set", "rounds=100000", "--quiet", "--out", at("run")});
  ASSERT_TRUE(eventually([&] {
    return fs::exists(at("run/metrics.jsonl")) && contents(at("run/metrics.jsonl")).size() > 10;
  })) << run->err();
  run->signal(SIGTERM);
  EXPECT_EQ(run->status(), 128 + SIGTERM);
  EXPECT_TRUE(eventually([&] { return processes_with(at("run")).empty(); }, 10));
}

}  // namespace
}  // namespace orthofed
