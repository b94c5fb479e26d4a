// Several steps of a tiny ViT on each device that runs the CUDA sources, against the CPU.
#include "tests/models/training/vit_step.h"

namespace orthofed {
namespace {

// 20 steps of SGD, whose weights follow the gradients as they are (AdamW amplifies noise in them):
// every adapter ends where the CPU's does.
TEST(VitDevices, TwentyStepsOfSgdEndTogether) {
  for (const Where where : places({{DType::f32, Device::simt}, {DType::f32, Device::cuda}})) {
    SCOPED_TRACE(name_of(where.device));
    const Batch b = make_batch(fixture().at("input.patches"), fixture().at("input.labels"),
                               fixture().at("input.weights"), DType::f32);
    auto cpu = make_tuner(DType::f32, Device::cpu, false);
    auto other = make_tuner(DType::f32, where.device, false);
    for (uint64_t step = 0; step < 20; ++step) {
      const StepResult want = cpu->step({&b}, 0.5, 1.0, Phase::joint, step);
      const StepResult got = other->step({&b}, 0.5, 1.0, Phase::joint, step);
      EXPECT_NEAR(got.loss, want.loss, 1e-5 * want.loss) << step;
      EXPECT_NEAR(got.norm, want.norm, 1e-4 * want.norm) << step;
    }
    for (const bool general : {true, false}) {
      const TensorMap want = general ? cpu->general() : cpu->personal();
      const TensorMap got = general ? other->general() : other->personal();
      ASSERT_EQ(want.size(), got.size());
      for (const auto& [name, t] : want) EXPECT_TRUE(elements_agree(got.at(name), t, 1e-4)) << name;
    }
  }
}

}  // namespace
}  // namespace orthofed
