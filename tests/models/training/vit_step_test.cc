// A whole training step of a tiny ViT against PyTorch (tests/fixtures/README.md): features, logits,
// losses and every gradient; the optimiser on given gradients; and 50 steps of a loss curve.
#include "tests/models/training/vit_step.h"

namespace orthofed {
namespace {

class VitStep : public testing::TestWithParam<Where> {
 protected:
  DType compute() const { return GetParam().compute; }
  Device device() const { return GetParam().device; }
  // The fixture is rounded to float32 once; fp32 sums differ by their order.
  double tolerance() const { return compute() == DType::f64 ? 3e-7 : 1e-5; }
  Batch batch() const {
    return make_batch(fixture().at("input.patches"), fixture().at("input.labels"),
                      fixture().at("input.weights"), compute());
  }
};

TEST_P(VitStep, LoraStepAgreesWithPyTorch) {
  for (const AdapterStrategy strategy : {AdapterStrategy::unmerged, AdapterStrategy::merged}) {
    SCOPED_TRACE(word(strategy));
    auto tuner = make_tuner(compute(), device(), true, strategy);
    const Batch b = batch();
    {
      const OnDevice scope(device());
      Tape tape(false);
      EXPECT_TRUE(
          elements_agree(tuner->logits(b.patches, 6), fixture().at("output.logits"), tolerance()));
      EXPECT_TRUE(elements_agree(tuner->model().features(tape, b.patches.on(device()), 6).value(),
                                 fixture().at("output.features"), tolerance()));
    }
    const StepResult r = tuner->gradients({&b}, 1.0, Phase::joint, 0);
    EXPECT_EQ(r.images, 5);
    EXPECT_NEAR(r.ce, fixture().at("loss.ce").item(), tolerance() * 3);
    EXPECT_NEAR(r.loss, fixture().at("loss.total").item(), tolerance() * 3);
    const PenaltyValues p = tuner->penalties();
    for (const char* kind : {"update", "base", "subspace"})
      EXPECT_NEAR(p.at(kind), fixture().at(std::string("loss.") + kind).item(), 1e-5) << kind;

    int compared = 0;
    for (AdapterKind kind : {AdapterKind::general, AdapterKind::personal}) {
      for (const Var& v : tuner->parameters(kind).parameters()) {
        const bool head = v.name().starts_with("head.");
        const std::string name = (head                           ? "grad."
                                  : kind == AdapterKind::general ? "grad.general."
                                                                 : "grad.personal.") +
                                 v.name();
        const Tensor mean = v.grad().host_copy().to(DType::f64);
        for (int64_t i = 0; i < mean.rows(); ++i)
          for (int64_t j = 0; j < mean.cols(); ++j) mean.row<double>(i)[j] /= double(r.images);
        EXPECT_TRUE(elements_agree(mean, fixture().at(name), tolerance())) << name;
        ++compared;
      }
    }
    EXPECT_EQ(compared,
              2 * 2 * 2 * 4 + 2);  // A and B of two adapters, 2 blocks, 4 targets; the head
  }
}

TEST_P(VitStep, MicroBatchesSumToTheWholeBatch) {
  auto whole = make_tuner(compute(), device()), parts = make_tuner(compute(), device());
  Batch b = batch();
  b.weights.fill(1);  // counts weigh micro-batches, so samples weigh alike
  b.valid = 6;
  whole->gradients({&b}, 1.0, Phase::joint, 0);
  const int64_t per_image = 16;
  std::vector<Batch> pieces;
  for (int64_t i = 0; i < 6; i += 2)
    pieces.push_back(make_batch(
        b.patches.row_range(i * per_image, (i + 2) * per_image).clone(),
        b.labels.contiguous().reshape({6, 1}).row_range(i, i + 2).reshape({2}),
        b.weights.contiguous().reshape({6, 1}).row_range(i, i + 2).reshape({2}), compute()));
  parts->gradients({&pieces[0], &pieces[1], &pieces[2]}, 1.0, Phase::joint, 0);
  for (AdapterKind kind : {AdapterKind::general, AdapterKind::personal})
    for (size_t i = 0; i < whole->parameters(kind).parameters().size(); ++i)
      EXPECT_TRUE(elements_agree(parts->parameters(kind).parameters()[i].grad(),
                                 whole->parameters(kind).parameters()[i].grad(), tolerance() * 3));
}

// The device notices, before the host does: nothing that is kept or sent has moved.
TEST_P(VitStep, ADivergentStepChangesNothing) {
  auto tuner = make_tuner(compute(), device());
  const Batch good = batch();
  tuner->step({&good}, 0.5, 1, Phase::joint, 0);
  const auto kept = [&] {
    std::map<std::string, std::vector<double>> all;
    for (const TensorMap& part : {tuner->general(), tuner->personal(), tuner->optimizer_state()})
      for (const auto& [name, t] : part) all[name] = t.to_vector();
    return all;
  };
  const auto before = kept();
  Batch bad = batch();
  bad.patches = bad.patches.clone();
  bad.patches.row_range(0, 1).fill(NAN);
  tuner->start_step({&bad}, 0.5, 1, Phase::joint, 7);
  EXPECT_EQ(kept(), before);
  std::string message;
  try {
    tuner->finish_step();
  } catch (const Error& error) {
    message = error.what();
  }
  EXPECT_NE(message.find("nan at step 7: training has diverged"), std::string::npos) << message;
  EXPECT_EQ(kept(), before);
}

TEST_P(VitStep, TrainingFromScratchAgreesWithPyTorch) {
  const OnDevice scope(device());
  const Vit vit = make_vit(true, compute(), true);
  const Batch b = batch();
  Tape tape;
  const Var f = vit.features(tape, b.patches.on(device()), 6);
  EXPECT_TRUE(elements_agree(f.value(), fixture().at("full.output.features"), tolerance()));
  const Var z = vit.logits(tape, f);
  const Var loss = cross_entropy(tape, z, b.labels.on(device()),
                                 b.weights.to(accum(compute())).on(device()), {}, {}, {});
  EXPECT_NEAR(loss.value().item(), fixture().at("full.loss.ce").item(), tolerance() * 3);
  tape.backward(loss);
  for (const Var& v : vit.parameters()) {
    const Tensor& want = fixture().at("full.grad." + v.name());
    ASSERT_EQ(want.size(), v.grad().size()) << v.name();
    EXPECT_TRUE(elements_agree(v.grad(), want, tolerance())) << v.name();
  }
}

TEST_P(VitStep, MergedAdaptersPredictTheSame) {
  auto tuner = make_tuner(compute(), device());
  const Tensor patches = batch().patches;
  const Tensor apart = tuner->logits(patches, 6);
  const OnDevice scope(device());
  for (Block& block : tuner->model().blocks)
    for (Linear* l : {&block.qkv, &block.proj, &block.fc1, &block.fc2})
      l->set_strategy(AdapterStrategy::merged);
  EXPECT_TRUE(elements_agree(tuner->logits(patches, 6), apart, tolerance()));
}

INSTANTIATE_TEST_SUITE_P(Places, VitStep,
                         testing::ValuesIn(places({{DType::f64, Device::cpu},
                                                   {DType::f32, Device::cpu},
                                                   {DType::f32, Device::simt},
                                                   {DType::f32, Device::cuda}})),
                         place_name);

// 50 steps. fp32 follows PyTorch's float64 curve; bf16 stays within twice the band that PyTorch's
// own bf16 autocast leaves around its fp32.
TEST(VitCurve, FiftyStepsFollowPyTorch) {
  const TensorMap curve = load_safetensors(kFixtures + "vit_curve.safetensors").tensors;
  const Tensor images = curve.at("input.images"), labels = curve.at("input.labels");
  const std::vector<double> f64 = curve.at("curve.f64").to_vector(),
                            f32 = curve.at("curve.f32").to_vector(),
                            bf16_ = curve.at("curve.bf16").to_vector();
  double band = 0;
  for (size_t i = 0; i < f64.size(); ++i) band = std::max(band, std::abs(bf16_[i] - f32[i]));

  for (DType compute : {DType::f32, DType::bf16}) {
    auto tuner = make_tuner(compute);
    const VitConfig& c = tuner->model().config;
    const int64_t count = images.dim(0), batch = images.dim(1),
                  pixels = images.dim(2) * images.dim(3) * 3;
    std::vector<Batch> batches;
    const Tensor flat = images.contiguous().reshape({count * batch * pixels});
    for (int64_t i = 0; i < count; ++i) {
      std::vector<float> values;  // patch (py, px), channel, row, column
      for (int64_t b = 0; b < batch; ++b)
        for (int64_t py = 0; py < 32 / c.patch; ++py)
          for (int64_t px = 0; px < 32 / c.patch; ++px)
            for (int64_t ch = 0; ch < 3; ++ch)
              for (int64_t y = 0; y < c.patch; ++y)
                for (int64_t x = 0; x < c.patch; ++x)
                  values.push_back(
                      (float(flat.data<uint8_t>()[(i * batch + b) * pixels +
                                                  ((py * c.patch + y) * 32 + px * c.patch + x) * 3 +
                                                  ch]) /
                           255.0f -
                       0.5f) /
                      0.5f);
      std::vector<int32_t> label(labels.row<int32_t>(i), labels.row<int32_t>(i) + batch);
      batches.push_back(make_batch(Tensor::of(values, {batch * c.patches(), 3 * c.patch * c.patch}),
                                   Tensor::of(label, {batch}), Tensor::full({batch}, DType::f32, 1),
                                   compute));
    }
    for (size_t step = 0; step < f64.size(); ++step) {
      const double loss =
          tuner->step({&batches[step % batches.size()]}, 0.5, 1.0, Phase::joint, step).loss;
      const double allowed = compute == DType::f32 ? 1e-5 * std::max(1.0, f64[step]) : 2 * band;
      EXPECT_TRUE(std::abs(loss - f64[step]) <= allowed)
          << name_of(compute) << " step " << step << ": " << loss << " against " << f64[step];
    }
  }
}

// The optimiser on identical gradients: AdamW amplifies differences in g, so weights after a step
// say nothing unless the gradients are given.
TEST(VitCurve, OptimiserAgreesOnGivenGradients) {
  const TensorMap curve = load_safetensors(kFixtures + "vit_curve.safetensors").tensors;
  std::vector<std::string> names;
  for (const auto& [name, t] : under(curve, "adamw.0.")) names.push_back(name);
  ASSERT_EQ(names.size(), 4u);
  ParameterGroup group;
  for (const std::string& n : names)
    group.add(Var(curve.at("adamw.0." + n).clone(), true, n),
              n == "head.bias" || n.ends_with("bias") ? 0.0 : 0.01);
  Optimizer optimizer({});
  for (int t = 1; t <= 3; ++t) {
    const std::string prefix = "adamw." + std::to_string(t) + ".";
    for (const Var& v : group.parameters()) {
      const GradTarget target = v.grad_target();
      target.buffer.copy_from(curve.at(prefix + "grad." + v.name()));
    }
    const double norm = optimizer.step({&group}, 1e-3);
    EXPECT_NEAR(norm, curve.at(prefix + "norm").item(), 1e-6 * norm);
    for (const Var& v : group.parameters())
      EXPECT_TRUE(elements_agree(v.value(), curve.at(prefix + v.name()), 1e-6))
          << t << " " << v.name();
  }
  TensorMap state;
  group.save("", state);
  for (const std::string& n : names) {
    EXPECT_TRUE(elements_agree(state.at("m." + n), curve.at("adamw.3.m." + n), 1e-6)) << n;
    EXPECT_TRUE(elements_agree(state.at("v." + n), curve.at("adamw.3.v." + n), 1e-6)) << n;
  }
}

}  // namespace
}  // namespace orthofed
