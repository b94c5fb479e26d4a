// A seventh method is one row: A of one adapter is averaged, B stays at its client, as in FedSA-LoRA
// (Guo et al., arXiv 2410.01463). The row alone makes it a word of the configuration, and runs.
#include <gtest/gtest.h>

#include "engine/io/files.h"
#include "federation/client/vit_site.h"
#include "federation/local/in_process.h"
#include "models/config/keys.h"
#include "models/config/toml.h"
#include "models/methods/method.h"
#include "models/training/demo_base.h"
#include "models/training/site_data.h"
#include "tests/support/files.h"

namespace orthofed {
namespace {

using test::TemporaryDirectory;

[[maybe_unused]] const bool added = [] {
  add_method({.name = "share_a",
              .help = "one adapter, of which A is averaged",
              .general = true,
              .up = {.a = true, .head = true},
              .down = {.a = true, .head = true},
              .server = ServerRule::mean});
  return true;
}();

class Seventh : public testing::Test {
 protected:
  Seventh() {
    VitConfig c;
    c.image_size = 16;
    c.patch = 4;
    c.dim = 24;
    c.depth = 2;
    c.heads = 3;
    c.mlp_dim = 48;
    write_file(directory / "run.toml", R"(method = "share_a"
rounds = 2
seed = 11
precision = "f32"
[lora]
rank = 2
personal_rank = 3
[penalty]
update = 1.0
[train]
batch_size = 8
[data]
format = "synthetic"
[data.synthetic]
train = 19
test = 12
clients = 2
size = 16
)");
    config = load_config(
        directory / "run.toml",
        {"model.weights=" + save_base(Vit::create(c, DType::f32, 3), directory / "base")}, &notes);
    config = completed(config);
  }
  std::unique_ptr<VitSite> site(const std::string& client) {
    return std::make_unique<VitSite>(config, client, directory / client);
  }
  static bool equal(const TensorMap& a, const TensorMap& b, const std::string& ending) {
    bool same = true;
    for (const auto& [name, tensor] : a)
      if (name.ends_with(ending)) same = same && tensor.to_vector() == b.at(name).to_vector();
    return same;
  }

  TemporaryDirectory directory;
  std::vector<std::string> notes;
  RunConfig config;
};

TEST_F(Seventh, IsAWordOfTheConfigurationWithTheTablesDefaults) {
  EXPECT_EQ(config.method, "share_a");
  EXPECT_EQ(notes, std::vector<std::string>{
                       "method share_a has no penalty: the weights in [penalty] are set to 0"});
  EXPECT_EQ(config.lora.personal_rank, LoraConfig{}.personal_rank);
  EXPECT_NE(config_listing("method").find("share_a: one adapter, of which A"), std::string::npos);
  EXPECT_TRUE(test::user_error([&] { load_config(directory / "run.toml", {"method=share_b"}); },
                               {"pooled | share_a", "did you mean 'share_a'?"}));
}

TEST_F(Seventh, RunsAndSendsWhatItsRowSays) {
  std::vector<std::unique_ptr<VitSite>> sites;
  std::vector<Site*> pointers;
  for (const std::string& client : config.federation.clients)
    pointers.push_back(sites.emplace_back(site(client)).get());
  const InitialState start = initial_state(config);
  ServerObserver quiet;
  const FederationResult result =
      run_in_process(config, start.agreement, start.general, pointers, quiet);

  EXPECT_EQ(result.general.size(), start.agreement.schema.size());
  for (const auto& [name, tensor] : result.general)
    EXPECT_FALSE(name.ends_with(".lora_B.weight")) << name;
  EXPECT_FALSE(equal(result.general, start.general, ".lora_A.weight"));
  const TensorMap a = sites[0]->trainer().tuner().general();
  const TensorMap b = sites[1]->trainer().tuner().general();
  EXPECT_TRUE(equal(a, b, ".lora_A.weight"));
  EXPECT_TRUE(equal(a, b, "head.weight"));
  EXPECT_FALSE(equal(a, b, ".lora_B.weight"));
}

// What no broadcast brings survives a restart of the site.
TEST_F(Seventh, KeepsAtHomeWhatIsNotSent) {
  const std::string client = config.federation.clients[0];
  const TensorMap broadcast = initial_state(config).general;
  const auto whole = site(client);
  whole->train(broadcast, 0, 2);
  const auto restarted = site(client);  // reads what the first round left
  const SiteUpdate got = restarted->train(broadcast, 1, 2), want = whole->train(broadcast, 1, 2);
  EXPECT_EQ(want.train_loss, got.train_loss);
  EXPECT_TRUE(equal(want.tensors, got.tensors, ""));
  EXPECT_TRUE(
      equal(whole->trainer().tuner().general(), restarted->trainer().tuner().general(), ""));
}

}  // namespace
}  // namespace orthofed
