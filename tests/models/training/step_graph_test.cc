// A captured step, replayed, against the same step run by itself: every number and every bit that a
// run keeps, over steps whose learning rate, ramp, images and active adapters change.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "engine/data/loader.h"
#include "engine/tensor/allocator.h"
#include "engine/tensor/watch.h"
#include "kernels/simt/memory.h"
#include "models/training/fine_tune.h"
#include "tests/support/graph.h"

namespace orthofed {
namespace {

[[maybe_unused]] const bool guarded = [] {
  simt::guard_memory();
  return true;
}();

FineTuneOptions options() {
  FineTuneOptions o;
  o.classes = 3;
  o.head = HeadKind::both;
  o.seed = 5;
  o.client = "site";
  o.lora.rank = 3;
  o.lora.personal_rank = 2;
  o.lora.targets = {"qkv"};
  o.penalty.update = 2;
  o.penalty.features = 0.5;
  o.train.lr = 1e-2;
  o.train.schedule = Schedule::cosine;
  o.train.warmup = 0.2;
  o.train.personal_dropout = 0.4;
  o.train.class_weights = ClassWeights::inverse;
  return o;
}

std::unique_ptr<FineTuner> tuner_on(Device device, FineTuneOptions o, GraphUse graph,
                                    DType compute = DType::f32) {
  const OnDevice scope(device);
  const VitConfig c{.image_size = 8, .patch = 4, .dim = 12, .depth = 1, .heads = 2, .mlp_dim = 24};
  o.train.graph = graph;
  auto model = std::make_unique<Vit>(
      Vit::from_tensors(c, Vit::create(c, DType::f32, 1).tensors(), compute, false));
  auto tuner = std::make_unique<FineTuner>(std::move(model), o);
  tuner->draw_general();
  tuner->draw_personal();
  tuner->set_class_counts({4, 2, 1});
  return tuner;
}

Batch random_batch(int64_t images, int64_t valid, uint64_t seed, DType compute = DType::f32) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal;
  std::vector<double> pixels(size_t(images * 4 * 48)), labels(static_cast<size_t>(images)),
      weights(static_cast<size_t>(images));
  for (double& x : pixels) x = normal(engine);
  for (size_t i = 0; i < labels.size(); ++i) {
    labels[i] = double((i + seed) % 3);
    weights[i] = int64_t(i) < valid;
  }
  return {Tensor::of(pixels, {images * 4, 48}).to(compute),
          Tensor::of(labels, {images}).to(DType::i32),
          Tensor::of(weights, {images}).to(DType::f32),
          {},
          valid};
}

std::map<std::string, std::vector<double>> kept_by(const FineTuner& tuner) {
  std::map<std::string, std::vector<double>> all;
  for (const TensorMap& part : {tuner.general(), tuner.personal(), tuner.optimizer_state()})
    for (const auto& [name, t] : part) all[name] = t.to_vector();
  return all;
}

void expect_same(const StepResult& got, const StepResult& want) {
  EXPECT_EQ(got.loss, want.loss);
  EXPECT_EQ(got.ce, want.ce);
  EXPECT_EQ(got.norm, want.norm);
  EXPECT_EQ(got.images, want.images);
}

TEST(StepGraph, ReplayedStepsAreTheStepsBitForBit) {
  auto plain = tuner_on(Device::simt, options(), GraphUse::off);
  auto replayed = tuner_on(Device::simt, options(), GraphUse::on);
  ASSERT_EQ(plain->graph_counts(), nullptr);
  constexpr uint64_t kSteps = 12;
  for (uint64_t i = 0; i < kSteps; ++i) {
    SCOPED_TRACE("step " + std::to_string(i));
    // One batch has room left, as an epoch's last one; evaluation comes between two steps.
    const Batch batch = random_batch(3, i == 5 ? 2 : 3, i);
    const auto step = [&](FineTuner& tuner) {
      return tuner.step({&batch}, double(i) / kSteps, std::min(1.0, double(i) / 4), Phase::joint,
                        i);
    };
    expect_same(step(*replayed), step(*plain));
    if (i % 4 == 3) {
      EXPECT_EQ(replayed->logits(batch.patches, 3).to_vector(),
                plain->logits(batch.patches, 3).to_vector());
      EXPECT_EQ(replayed->penalties(), plain->penalties());
    }
    ASSERT_EQ(kept_by(*replayed), kept_by(*plain));
  }
  const StepGraphs::Counts& counts = *replayed->graph_counts();
  EXPECT_GE(counts.captured, 2);  // with the personal adapter and without
  EXPECT_GE(counts.replayed, 5);

  // A step that diverges when it is replayed leaves everything as it was, and the next one runs.
  const auto before = kept_by(*replayed);
  const int64_t replays = counts.replayed;
  Batch bad = random_batch(3, 3, 1);
  bad.patches.row_range(0, 1).fill(NAN);
  uint64_t index = 0;
  for (; counts.replayed == replays; ++index)
    EXPECT_THROW(replayed->step({&bad}, 0.5, 1, Phase::joint, index), Error);
  EXPECT_EQ(kept_by(*replayed), before);
  const Batch good = random_batch(3, 3, 2);
  expect_same(replayed->step({&good}, 0.5, 1, Phase::joint, index),
              plain->step({&good}, 0.5, 1, Phase::joint, index));
  EXPECT_EQ(kept_by(*replayed), kept_by(*plain));
}

TEST(StepGraph, PhasesAndMicroBatchesToo) {
  for (const AdapterStrategy strategy :
       {AdapterStrategy::unmerged, AdapterStrategy::extended, AdapterStrategy::merged}) {
    const DType compute = strategy == AdapterStrategy::extended ? DType::bf16 : DType::f32;
    FineTuneOptions o = options();  // nothing is dropped from a phase that has nothing else
    o.lora.strategy = strategy;
    if (strategy == AdapterStrategy::merged) o.penalty.features = 0;
    auto plain = tuner_on(Device::simt, o, GraphUse::off, compute),
         replayed = tuner_on(Device::simt, o, GraphUse::on, compute);
    for (uint64_t i = 0; i < 6; ++i) {
      SCOPED_TRACE(word(strategy) + std::string(" step ") + std::to_string(i));
      const Batch a = random_batch(2, 2, i, compute), b = random_batch(2, 1, 100 + i, compute);
      const Phase phase = i % 2 == 0 ? Phase::general : Phase::personal;
      const auto step = [&](FineTuner& tuner) {
        return tuner.step({&a, &b}, double(i) / 6, double(i) / 6, phase, i);
      };
      expect_same(step(*replayed), step(*plain));
      ASSERT_EQ(kept_by(*replayed), kept_by(*plain));
    }
    EXPECT_EQ(replayed->graph_counts()->captured, 2);
    EXPECT_EQ(replayed->graph_counts()->replayed, 2);
  }
}

TEST(StepGraph, MergedStepsFollowUnmergedOnes) {
  FineTuneOptions o = options();
  o.penalty.features = 0;
  auto apart = tuner_on(Device::simt, o, GraphUse::on);
  o.lora.strategy = AdapterStrategy::merged;
  auto merged = tuner_on(Device::simt, o, GraphUse::on);
  for (uint64_t i = 0; i < 6; ++i) {
    SCOPED_TRACE("step " + std::to_string(i));
    const Batch batch = random_batch(3, 3, i);
    const auto step = [&](FineTuner& tuner) {
      return tuner.step({&batch}, 0.5, 1, Phase::joint, i);
    };
    const StepResult got = step(*merged), want = step(*apart);
    EXPECT_NEAR(got.loss, want.loss, 1e-4 * want.loss);
    EXPECT_NEAR(got.norm, want.norm, 1e-3 * want.norm);
    for (const bool personal : {true, false})
      EXPECT_LE(test::relative_norm(merged->logits(batch.patches, 3, personal),
                                    apart->logits(batch.patches, 3, personal)),
                1e-3);
  }
  EXPECT_GE(merged->graph_counts()->replayed, 1);

  o.penalty.features = 1;  // whose gradient takes another way
  EXPECT_THROW(tuner_on(Device::simt, o, GraphUse::on), UserError);
}

// The `features` penalty included. bf16 rounds what the tails read, and this model to 8 bits.
TEST(StepGraph, ExtendedStepsFollowUnmergedOnes) {
  FineTuneOptions o = options();
  auto apart = tuner_on(Device::simt, o, GraphUse::on, DType::bf16);
  o.lora.strategy = AdapterStrategy::extended;
  auto extended = tuner_on(Device::simt, o, GraphUse::on, DType::bf16);
  for (uint64_t i = 0; i < 6; ++i) {
    SCOPED_TRACE("step " + std::to_string(i));
    const Batch batch = random_batch(3, 3, i, DType::bf16);
    const auto step = [&](FineTuner& tuner) {
      return tuner.step({&batch}, 0.5, 1, Phase::joint, i);
    };
    const StepResult got = step(*extended), want = step(*apart);
    EXPECT_NEAR(got.loss, want.loss, 2e-2 * want.loss);
    EXPECT_NEAR(got.norm, want.norm, 5e-2 * want.norm);
    for (const bool personal : {true, false})
      EXPECT_LE(test::relative_norm(extended->logits(batch.patches, 3, personal),
                                    apart->logits(batch.patches, 3, personal)),
                5e-2);
  }
  EXPECT_GE(extended->graph_counts()->replayed, 1);
}

// Whoever watches kernel calls sees every one of them.
TEST(StepGraph, WatchedStepsAreNotCaptured) {
  FineTuneOptions o = options();
  o.train.personal_dropout = 0;
  auto tuner = tuner_on(Device::simt, o, GraphUse::on);
  const auto watch = make_finite_check(queue_on(Device::simt));
  const Batch batch = random_batch(2, 2, 1);
  watch_calls(watch.get());
  for (uint64_t i = 0; i < 3; ++i) tuner->step({&batch}, 0.5, 1, Phase::joint, i);
  watch_calls(nullptr);
  EXPECT_EQ(tuner->graph_counts()->ordinary, 3);
}

// The pool keeps one kind of step's memory from another; where that is too much, nothing is
// captured from there on.
TEST(StepGraph, ADeviceThatIsTooSmallForThePoolDoesWithout) {
  FineTuneOptions o = options();
  o.train.personal_dropout = 0;
  auto plain = tuner_on(Device::simt, o, GraphUse::off),
       replayed = tuner_on(Device::simt, o, GraphUse::on);
  const auto step = [](FineTuner& tuner, int64_t images, uint64_t i) {
    const Batch batch = random_batch(images, images, i);
    return tuner.step({&batch}, 0.5, 1, Phase::joint, i);
  };
  for (uint64_t i = 0; i < 3; ++i) {
    step(*plain, 6, i);
    step(*replayed, 6, i);
  }
  EXPECT_EQ(replayed->graph_counts()->replayed, 1);
  step(*plain, 4, 3);  // takes what it needs
  release_cached(Device::simt);
  simt::limit_memory(size_t(allocator_stats(Device::simt).bytes_reserved) + 8192);
  step(*replayed, 4, 3);
  simt::limit_memory(0);
  EXPECT_EQ(replayed->graph_counts(), nullptr);
  EXPECT_EQ(kept_by(*replayed), kept_by(*plain));
}

TEST(StepGraph, IsForDevicesThatHaveLaunches) {
  EXPECT_EQ(tuner_on(Device::cpu, options(), GraphUse::on)->graph_counts(), nullptr);
  EXPECT_EQ(tuner_on(Device::simt, options(), GraphUse::automatic)->graph_counts(), nullptr);
}

}  // namespace
}  // namespace orthofed
