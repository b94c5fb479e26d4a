// train.frozen_precision = "fp8": steps that learn as those in bf16 do, and what it does not go
// with.
#include "tests/models/training/vit_step.h"

namespace orthofed {
namespace {

std::unique_ptr<FineTuner> tuner(FrozenPrecision frozen, DType compute = DType::bf16,
                                 AdapterStrategy strategy = AdapterStrategy::unmerged,
                                 GraphUse graph = GraphUse::automatic) {
  FineTuneOptions o;
  o.classes = 5;
  o.seed = 3;
  o.client = "site";
  o.lora.rank = 4;
  o.lora.strategy = strategy;
  o.penalty.update = 2;
  o.train.lr = 3e-3;
  o.train.warmup = 0;
  o.train.frozen_precision = frozen;
  o.train.graph = graph;
  auto made =
      std::make_unique<FineTuner>(std::make_unique<Vit>(make_vit(false, compute, false)), o);
  made->draw_general();
  made->draw_personal();
  return made;
}

// The first of the fixture's six images.
Batch batch(int64_t images) {
  const OnDevice host(Device::cpu);
  const Tensor &patches = fixture().at("input.patches"), &labels = fixture().at("input.labels");
  Batch b;
  b.patches = patches.row_range(0, patches.rows() / 6 * images).to(DType::bf16);
  std::vector<double> classes = labels.to_vector();
  classes.resize(size_t(images));
  b.labels = Tensor::of(classes, {images}).to(DType::i32);
  b.weights = Tensor::full({images}, DType::f32, 1);
  b.valid = images;
  return b;
}

std::string refusal(const std::function<void()>& f) {
  try {
    f();
  } catch (const UserError& e) {
    return e.what();
  }
  return "";
}

Queue emulated(int capability) {
  Queue queue;
  queue.device = Device::simt;
  queue.simt.capability = capability;
  return queue;
}

TEST(FrozenFp8, LearnsAsInBf16) {
  auto same = tuner(FrozenPrecision::same), fp8 = tuner(FrozenPrecision::fp8);
  for (const Block& block : fp8->model().blocks)
    for (const Linear* layer : {&block.qkv, &block.proj, &block.fc1, &block.fc2})
      EXPECT_TRUE(layer->quantized());
  EXPECT_FALSE(fp8->model().patch_embed.quantized());
  EXPECT_FALSE(same->model().blocks[0].qkv.quantized());

  const Batch b = batch(6);
  const double difference =
      test::relative_norm(fp8->logits(b.patches, 6), same->logits(b.patches, 6));
  EXPECT_GT(difference, 0);  // it is in use
  EXPECT_LT(difference, 0.1);
  double first = 0, last = 0, want = 0;
  for (uint64_t i = 0; i < 20; ++i) {
    last = fp8->step({&b}, 0.5, 1, Phase::joint, i).ce;
    want = same->step({&b}, 0.5, 1, Phase::joint, i).ce;
    if (i == 0) {
      first = last;
      EXPECT_NEAR(first, want, 0.1 * want);
    }
  }
  EXPECT_LT(last, 0.7 * first);
  EXPECT_NEAR(last, want, 0.2 * first);
}

// The emulated GPU, one step by itself, one captured and one replayed, beside the CPU.
TEST(FrozenFp8, TheSameOnAGpu) {
  auto cpu = tuner(FrozenPrecision::fp8);
  Queue hopper = emulated(90);
  const OnQueue queue(hopper);
  const OnDevice scope(Device::simt);
  auto gpu = tuner(FrozenPrecision::fp8, DType::bf16, AdapterStrategy::unmerged, GraphUse::on);
  const Batch b = batch(1);
  for (uint64_t i = 0; i < 3; ++i) {
    const double got = gpu->step({&b}, 0.5, 1, Phase::joint, i).loss;
    EXPECT_NEAR(got, cpu->step({&b}, 0.5, 1, Phase::joint, i).loss, 0.03 * got) << i;
  }
  EXPECT_EQ(gpu->graph_counts()->replayed, 1);
}

TEST(FrozenFp8, SaysWhatItNeeds) {
  EXPECT_EQ(
      refusal([] { tuner(FrozenPrecision::fp8, DType::f32); }),
      "frozen_precision fp8 goes with activations in bf16, and precision is f32: set precision "
      "= \"bf16\"");
  for (const AdapterStrategy strategy : {AdapterStrategy::merged, AdapterStrategy::extended})
    EXPECT_NE(refusal([&] {
                tuner(FrozenPrecision::fp8, DType::bf16, strategy);
              }).find("set lora.strategy = \"unmerged\""),
              std::string::npos)
        << word(strategy);
  const OnDevice scope(Device::simt);
  EXPECT_NE(refusal([] { tuner(FrozenPrecision::fp8); }).find("needs compute capability 8.9"),
            std::string::npos);
}

}  // namespace
}  // namespace orthofed
