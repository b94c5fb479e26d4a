// A run called from a program: what it tells, what it leaves behind, and whom it starts.
#include "federation/local/run_here.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "engine/io/files.h"
#include "models/config/toml.h"
#include "models/training/demo_base.h"
#include "tests/support/files.h"

namespace orthofed {
namespace {

using test::TemporaryDirectory;

struct Calls : RunObserver {
  void round_started(int64_t, int64_t) override { ++count["round"]; }
  void client_round(const ClientRound&) override { ++count["record"]; }
  void finished(const FederationResult&) override { ++count["finished"]; }
  void measuring_machine() override { ++count["measuring"]; }
  void base_loaded(const Vit&) override { ++count["base"]; }
  void nothing_profiled() override { ++count["nothing profiled"]; }
  void decoded(int64_t done, int64_t) override { images = done; }
  void trained(int64_t done, int64_t of_round) override { count["trained"] += done == of_round; }
  std::map<std::string, int64_t> count;
  int64_t images = 0;
};
using Counts = std::map<std::string, int64_t>;

class RunHere : public testing::Test {
 protected:
  RunHere() {
    const VitConfig c{
        .image_size = 16, .patch = 4, .dim = 24, .depth = 1, .heads = 3, .mlp_dim = 48};
    config.model.weights = save_base(Vit::create(c, DType::f32, 3), directory / "base");
    config.device = DeviceChoice::cpu;
    config.precision = Precision::f32;
    config.rounds = 2;
    config.lora.rank = 2;
    config.penalty.update = 2;
    config.data.format = DataFormat::synthetic;
    config.data.synthetic = {.train = 19, .test = 12, .clients = 2, .shift = 1, .size = 16};
    config = completed(config);
  }
  LocalRun run() { return run_here(config, directory.path(), options, calls); }
  bool there(const std::string& file) const { return std::filesystem::exists(directory / file); }

  TemporaryDirectory directory;
  RunConfig config;
  LocalOptions options;
  Calls calls;
};

TEST_F(RunHere, ClientsAsThreads) {
  const LocalRun done = run();
  EXPECT_EQ(calls.count, (Counts{{"base", 1}, {"round", 2}, {"record", 4}, {"finished", 1}}));
  EXPECT_EQ(done.result.clients.size(), 2u);
  EXPECT_EQ(done.profile, "");
  EXPECT_EQ(to_json(read_summary(directory / "summary.json")), to_json(done.summary));
  EXPECT_TRUE(there("general_adapter.safetensors"));
  EXPECT_TRUE(there("metrics.jsonl"));
  for (const std::string& client : config.federation.clients)
    EXPECT_TRUE(there("clients/" + client + "/personal_adapter.safetensors")) << client;
  EXPECT_EQ(config_toml(load_config(directory / "config.toml")), config_toml(config));
}

TEST_F(RunHere, OneSiteAlone) {
  config.method = "local";
  config.penalty = {};
  config.data.client = config.federation.clients[0];
  config.rounds = 1;
  options.profile_steps = 2;  // one epoch of 19 images has two steps: not even the warm-up
  EXPECT_TRUE(trains_alone(config));
  const LocalRun done = run();
  EXPECT_EQ(calls.count, (Counts{{"measuring", 1},
                                 {"round", 1},
                                 {"record", 1},
                                 {"trained", 1},
                                 {"finished", 1},
                                 {"nothing profiled", 1}}));
  EXPECT_GT(calls.images, 0);
  EXPECT_EQ(done.profile, "");
  EXPECT_FALSE(there("profile.txt"));
  EXPECT_FALSE(there("general_adapter.safetensors"));
  EXPECT_TRUE(there("personal_adapter.safetensors"));
  EXPECT_TRUE(there("summary.json"));
}

// Processes are whatever the caller says: here one that is no client, and says so.
TEST_F(RunHere, ClientsAsProcesses) {
  std::map<std::string, std::string> folders;
  options.client_command = [&](const std::string& client, const std::string& address,
                               const std::string& folder) {
    folders[client] = folder;
    EXPECT_TRUE(address.starts_with("127.0.0.1:")) << address;
    return std::vector<std::string>{"/bin/sh", "-c", "echo 'not today' >&2; exit 2"};
  };
  EXPECT_TRUE(test::user_error([&] { run(); }, {"client '", "not today"}));
  EXPECT_EQ(folders.size(), 2u);
  EXPECT_EQ(folders.begin()->second, directory / ("clients/" + folders.begin()->first));
  EXPECT_FALSE(there("summary.json"));
}

}  // namespace
}  // namespace orthofed
