// Sites that really fine-tune a (tiny) ViT, through the round protocol: every method and head, what
// they send, repeatability, and what they keep.
#include "federation/client/vit_site.h"

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "engine/data/loader.h"
#include "engine/io/files.h"
#include "engine/io/safetensors.h"
#include "engine/tensor/allocator.h"
#include "federation/local/alone.h"
#include "federation/local/in_process.h"
#include "kernels/simt/memory.h"
#include "models/training/demo_base.h"
#include "models/training/make.h"
#include "tests/support/files.h"
#include "tests/support/graph.h"

namespace orthofed {
namespace {

using test::TemporaryDirectory;

// From here on host code that looks into the emulated device's memory stops the program.
[[maybe_unused]] const bool guarded = [] {
  simt::guard_memory();
  return true;
}();

// A random base of 16 px and two generated sites; seconds for a whole federation.
class Federation : public testing::Test {
 protected:
  Federation() {
    const VitConfig c{
        .image_size = 16, .patch = 4, .dim = 24, .depth = 2, .heads = 3, .mlp_dim = 48};
    config.model.weights = save_base(Vit::create(c, DType::f32, 3), directory / "base");
    config.precision = Precision::f32;
    config.method = "opal";
    config.penalty.update = 2;
    config.rounds = 2;
    config.seed = 11;
    config.lora.rank = 2;
    config.train.batch_size = 8;
    config.train.lr = 3e-3;
    config.data.format = DataFormat::synthetic;
    config.data.synthetic = {.train = 19, .test = 12, .clients = 2, .shift = 1, .size = 16};
    config = completed(config);
  }

  struct Run {
    FederationResult result;
    std::map<std::string, TensorMap> personal;  // of each client
    std::map<std::string, SiteMetrics> local;
  };
  // delays: seconds that each client, in order, waits before it answers.
  Run run(const RunConfig& c, const std::string& name, std::vector<double> delays = {},
          const Vit* base = nullptr) {
    class Slow : public VitSite {
     public:
      Slow(const RunConfig& rc, const std::string& client, const std::string& dir, double delay,
           const Vit* base)
          : VitSite(rc, client, dir, {}, base), delay_(delay) {}
      SiteUpdate train(const TensorMap& broadcast, int64_t round, int64_t rounds) override {
        SiteUpdate update = VitSite::train(broadcast, round, rounds);
        std::this_thread::sleep_for(std::chrono::duration<double>(delay_));
        return update;
      }

     private:
      double delay_;
    };
    const InitialState start = initial_state(c);
    std::vector<std::unique_ptr<Slow>> sites;
    std::vector<Site*> pointers;
    for (size_t i = 0; i < c.federation.clients.size(); ++i) {
      const std::string& client = c.federation.clients[i];
      sites.push_back(std::make_unique<Slow>(c, client, directory / (name + "/" + client),
                                             i < delays.size() ? delays[i] : 0, base));
      pointers.push_back(sites.back().get());
    }
    ServerObserver quiet;
    Run r{run_in_process(c, start.agreement, start.general, pointers, quiet), {}, {}};
    for (auto& site : sites) {
      r.personal[site->name()] = site->trainer().tuner().personal();
      r.local[site->name()] = site->local_after_training();
    }
    return r;
  }

  static LoaderOptions eight() {
    LoaderOptions o;
    o.batch_size = 8;
    o.patch = 4;
    return o;
  }
  static void expect_identical(const TensorMap& a, const TensorMap& b) {
    ASSERT_EQ(a.size(), b.size());
    for (const auto& [name, t] : a) EXPECT_EQ(t.to_vector(), b.at(name).to_vector()) << name;
  }
  static bool differ(const TensorMap& a, const TensorMap& b) {
    for (const auto& [name, t] : a)
      if (t.to_vector() != b.at(name).to_vector()) return true;
    return false;
  }

  TemporaryDirectory directory;
  RunConfig config;
};

TEST_F(Federation, SameSeedGivesTheSameBitsInWhateverOrderClientsAnswer) {
  const Run a = run(config, "a", {0, 0.15}), b = run(config, "b", {0.15, 0});
  expect_identical(a.result.general, b.result.general);
  for (const auto& [client, tensors] : a.personal) expect_identical(tensors, b.personal.at(client));
  RunConfig other = config;
  other.seed = 12;
  EXPECT_TRUE(differ(a.result.general, run(other, "c").result.general));
}

// The GPU's kernels, emulated, through a whole federation: the same bits at every run, and with SGD
// (whose steps do not amplify the order of a sum) the CPU's adapters.
TEST_F(Federation, TheEmulatedDeviceTrainsAsTheCpuDoes) {
  config.train.optimizer = OptimizerKind::sgd;
  config.train.lr = 0.05;
  config.rounds = 1;
  RunConfig emulated = config;
  emulated.device = DeviceChoice::simt;
  const Run want = run(config, "cpu"), got = run(emulated, "simt"), again = run(emulated, "again");
  expect_identical(got.result.general, again.result.general);
  for (const auto& [name, t] : want.result.general)
    EXPECT_LE(test::relative_norm(got.result.general.at(name), t), 1e-4) << name;
  for (const auto& [client, tensors] : want.personal)
    for (const auto& [name, t] : tensors)
      EXPECT_LE(test::relative_norm(got.personal.at(client).at(name), t), 1e-4)
          << client << ": " << name;
}

TEST_F(Federation, SitesOfOneProcessShareTheFrozenBase) {
  const std::unique_ptr<Vit> base = load_base(config);
  const Run own = run(config, "own"), shared = run(config, "shared", {}, base.get());
  expect_identical(own.result.general, shared.result.general);
  for (const auto& [client, tensors] : own.personal)
    expect_identical(tensors, shared.personal.at(client));

  // On a device in bf16, a second site costs adapters, and neither the weights nor their bf16 form.
  RunConfig emulated = config;
  emulated.device = DeviceChoice::simt;
  emulated.precision = Precision::bf16;
  const auto in_use = [] { return allocator_stats(Device::simt).bytes_in_use; };
  const int64_t before = in_use();
  const std::unique_ptr<Vit> resident = load_base(emulated);
  const int64_t of_base = in_use() - before;
  const auto first = make_fine_tuner(emulated, "a", resident.get());
  const int64_t of_adapters = in_use() - before - of_base;
  const auto second = make_fine_tuner(emulated, "b", resident.get());
  EXPECT_EQ(in_use() - before, of_base + 2 * of_adapters);
  const auto third = make_fine_tuner(emulated, "c");
  EXPECT_EQ(in_use() - before, 2 * of_base + 3 * of_adapters);
}

TEST_F(Federation, PersonalAdaptersDifferAndStayOnTheClientsDisk) {
  const Run r = run(config, "run");
  EXPECT_TRUE(differ(r.personal.at(config.federation.clients[0]),
                     r.personal.at(config.federation.clients[1])));
  for (const std::string& client : config.federation.clients) {
    const AdapterFile file =
        load_adapter(directory / ("run/" + client + "/personal_adapter.safetensors"));
    EXPECT_EQ(file.kind, AdapterKind::personal);
    EXPECT_EQ(file.round, config.rounds);
    const std::string metrics = read_text(directory / ("run/" + client + "/metrics.json"));
    EXPECT_NE(metrics.find("\"local_after_training\": {"), std::string::npos);
    expect_identical(file.tensors, r.personal.at(client));
    // The general file a client keeps is what the server averaged last.
    expect_identical(
        load_adapter(directory / ("run/" + client + "/general_adapter.safetensors")).tensors,
        r.result.general);
  }
}

TEST_F(Federation, OnlyTheAgreedTensorsAreSent) {
  for (const HeadKind head : {HeadKind::shared, HeadKind::personal, HeadKind::both}) {
    SCOPED_TRACE(word(head));
    RunConfig c = config;
    c.model.head = head;
    VitSite site(c, c.federation.clients[0], "");
    const Agreement agreement = site.agreement();
    const SiteUpdate update = site.train(initial_state(c).general, 0, 1);
    EXPECT_EQ(update.samples, 19);
    EXPECT_EQ(update.tensors.size(), agreement.schema.size());
    size_t adapters = 0;
    for (const auto& [name, t] : update.tensors) {
      const bool is_head = name == "head.weight" || name == "head.bias";
      EXPECT_TRUE(is_head || name.find(".lora_") != std::string::npos) << name;
      adapters += !is_head;
    }
    EXPECT_EQ(adapters, 2u * 2u * 4u);  // A and B, blocks, targets: one adapter, the general one
    EXPECT_EQ(update.tensors.contains("head.weight"), head != HeadKind::personal);
  }
}

TEST_F(Federation, EveryMethodRuns) {
  for (const std::string method : {"opal", "dual", "fedavg", "fedavg_ft", "local"}) {
    SCOPED_TRACE(method);
    RunConfig c = config;
    c.method = method;
    if (method != "opal") c.penalty = {};
    const Run r = run(c, method);
    ASSERT_EQ(r.result.clients.size(), 2u);
    for (const ClientResult& client : r.result.clients) {
      EXPECT_EQ(client.samples, 19);
      ASSERT_TRUE(client.evaluation.has_value());
      EXPECT_EQ(client.evaluation->personal.samples, 12);
      EXPECT_TRUE(client.evaluation->personal.accuracy >= 0);
      EXPECT_EQ(client.evaluation->general.samples, method == "local" ? 0 : 12);
      EXPECT_EQ(r.local.at(client.client).samples, 12);
    }
    EXPECT_EQ(r.result.general.empty(), method == "local");
    if (method == "fedavg") {
      for (const ClientResult& client : r.result.clients)
        EXPECT_EQ(client.evaluation->personal.confusion, client.evaluation->general.confusion);
    }
    if (method == "fedavg_ft") {
      EXPECT_TRUE(std::filesystem::exists(directory / ("fedavg_ft/" + c.federation.clients[0] +
                                                       "/fine_tuned_adapter.safetensors")));
    }
  }
}

TEST_F(Federation, EveryScheduleAndOptionRuns) {
  auto with = [&](auto change) {
    RunConfig c = config;
    c.rounds = 1;
    change(c);
    const Run r = run(c, "options");
    for (const auto& [name, t] : r.result.general) EXPECT_TRUE(t.all_finite()) << name;
  };
  with([](RunConfig& c) { c.train.alternation = Alternation::alternate; });
  with([](RunConfig& c) { c.train.accumulate = 2; });
  with([](RunConfig& c) { c.train.epochs = 0, c.train.steps = 4; });
  with([](RunConfig& c) { c.train.personal_dropout = 0.5; });
  with([](RunConfig& c) { c.train.class_weights = ClassWeights::inverse; });
  with([](RunConfig& c) { c.train.class_weights = ClassWeights::logit_adjust; });
  with([](RunConfig& c) {
    c.train.optimizer = OptimizerKind::sgd, c.train.schedule = Schedule::cosine;
  });
  with([](RunConfig& c) { c.train.state = OptimizerState::reset; });
  with([](RunConfig& c) { c.train.state = OptimizerState::keep_personal; });
  with([](RunConfig& c) { c.lora.targets = {"q", "v"}, c.lora.layers = {1}; });
  with([](RunConfig& c) { c.lora.init_orthogonal = true, c.lora.init = LoraInit::peft; });
  with([](RunConfig& c) { c.model.head = HeadKind::both; });
  with([](RunConfig& c) { c.model.head = HeadKind::personal; });
  with([](RunConfig& c) { c.data.validation = 0.4; });
  with([](RunConfig& c) { c.precision = Precision::bf16; });
  with([](RunConfig& c) {
    c.penalty = {.update = 1,
                 .base = 1,
                 .subspace = 1,
                 .subspace_l1 = 1,
                 .features = 0.5,
                 .base_subspace = 1};
    c.penalty.base_subspace_k = 4;
  });
  with([](RunConfig& c) {
    c.penalty.detach = PenaltyDetach::general, c.penalty.form = PenaltyForm::abs_cosine;
  });
}

TEST_F(Federation, AlternatingFreezesOneSideAtATime) {
  RunConfig c = config;
  c.train.alternation = Alternation::alternate;
  SiteTrainer trainer(c, c.federation.clients[0], "");
  trainer.start(false);
  FineTuner& tuner = trainer.tuner();
  Loader loader(trainer.data().cache, eight(), trainer.data().train);
  loader.start(0);
  const Batch* batch = loader.next();
  const TensorMap general = tuner.general(), personal = tuner.personal();
  tuner.step({batch}, 0.5, 1, Phase::general, 0);
  expect_identical(tuner.personal(), personal);
  EXPECT_TRUE(differ(tuner.general(), general));
  const TensorMap between = tuner.general();
  tuner.step({batch}, 0.5, 1, Phase::personal, 1);
  expect_identical(tuner.general(), between);
  EXPECT_TRUE(differ(tuner.personal(), personal));
}

TEST_F(Federation, APersonalAdapterSurvivesARestart) {
  const std::string client = config.federation.clients[0];
  const TensorMap broadcast = initial_state(config).general;
  VitSite whole(config, client, directory / "whole");
  whole.train(broadcast, 0, 3);
  const SiteUpdate want = whole.train(broadcast, 1, 3);
  {
    VitSite before(config, client, directory / "restarted");
    before.train(broadcast, 0, 3);
  }
  VitSite after(config, client, directory / "restarted");
  const SiteUpdate got = after.train(broadcast, 1, 3);
  expect_identical(got.tensors, want.tensors);
  expect_identical(after.trainer().tuner().personal(), whole.trainer().tuner().personal());

  RunConfig other = config;
  other.seed = 99;
  VitSite stranger(other, client, directory / "restarted");
  EXPECT_TRUE(
      test::user_error([&] { stranger.train(broadcast, 1, 3); }, {"another seed or method"}));
}

TEST_F(Federation, AWarmStepAllocatesNothing) {
  SiteTrainer trainer(config, config.federation.clients[0], "");
  trainer.start(false);
  Loader loader(trainer.data().cache, eight(), trainer.data().train);
  loader.start(0);
  const Batch* batch = loader.next();
  for (uint64_t i = 0; i < 3; ++i) trainer.tuner().step({batch}, 0.5, 1, Phase::joint, i);
  const int64_t before = allocator_stats(Device::cpu).heap_allocations;
  for (uint64_t i = 3; i < 8; ++i) trainer.tuner().step({batch}, 0.5, 1, Phase::joint, i);
  EXPECT_EQ(allocator_stats(Device::cpu).heap_allocations, before);
  // The counter counts: something new does allocate.
  const Tensor huge = Tensor::empty({12345, 77}, DType::f32);
  EXPECT_GT(allocator_stats(Device::cpu).heap_allocations, before);
}

TEST_F(Federation, PooledAndLocalRunAlone) {
  for (const std::string method : {"pooled", "local"}) {
    RunConfig c = config;
    c.method = method;
    c.penalty = {};
    int64_t rounds = 0;
    const FederationResult r = run_alone(
        c, method == "pooled" ? "" : c.federation.clients[1], directory / method, {},
        [](int64_t, int64_t) {},
        [&](int64_t, const RoundReport& report) {
          ++rounds;
          EXPECT_EQ(report.images, method == "pooled" ? 38 : 19);
        });
    EXPECT_EQ(rounds, 2);
    EXPECT_EQ(r.clients.size(), method == "pooled" ? 2u : 1u);
    EXPECT_EQ(r.clients.back().samples, 19);
  }
  EXPECT_TRUE(test::user_error(
      [&] {
        run_alone(
            config, "", "", {}, [](int64_t, int64_t) {}, [](int64_t, const RoundReport&) {});
      },
      {"opal", "local and pooled"}));
}

}  // namespace
}  // namespace orthofed
