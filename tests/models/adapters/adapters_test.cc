// Where adapters sit, how they start, and that penalties reach the gradients they should.
#include <gtest/gtest.h>

#include <cmath>

#include "models/adapters/lora.h"
#include "models/training/fine_tune.h"
#include "models/training/penalty.h"
#include "tests/support/files.h"
#include "tests/support/graph.h"

namespace orthofed {
namespace {

using test::user_error;

VitConfig tiny() {
  return {.image_size = 8, .patch = 4, .dim = 12, .depth = 3, .heads = 2, .mlp_dim = 24};
}

Vit model(DType compute = DType::f32) {
  return Vit::from_tensors(tiny(), Vit::create(tiny(), DType::f32, 1).tensors(), compute, false);
}

std::vector<std::string> names(Vit& m) {
  std::vector<std::string> all;
  for (const AdapterSlice* s : adapter_slices(m)) all.push_back(s->name);
  return all;
}

TEST(Adapters, AnySubsetOfTargetsAndLayers) {
  LoraConfig c;
  c.rank = 3;
  c.targets = {"q", "v", "fc2"};
  c.layers = {0, 2};
  Vit m = model();
  attach_adapters(m, c, AdapterKind::general);
  EXPECT_EQ(names(m),
            (std::vector<std::string>{"blocks.0.attn.q", "blocks.0.attn.v", "blocks.0.mlp.fc2",
                                      "blocks.2.attn.q", "blocks.2.attn.v", "blocks.2.mlp.fc2"}));
  const AdapterSlice& v = *adapter_slices(m)[1];
  EXPECT_EQ(v.begin, 24);  // the last third of the fused qkv
  EXPECT_EQ(v.rows, 12);
  const Adapter& general = *adapter_of(v, AdapterKind::general);
  EXPECT_EQ(general.a.shape().str(), "[3, 12]");
  EXPECT_EQ(general.b.shape().str(), "[12, 3]");
  EXPECT_EQ(general.scale, 2);  // alpha = 2 rank where none is given
  EXPECT_EQ(adapter_of(v, AdapterKind::personal), nullptr);
  EXPECT_EQ(adapted_layers(m), (std::vector<Linear*>{&m.blocks[0].qkv, &m.blocks[0].fc2,
                                                     &m.blocks[2].qkv, &m.blocks[2].fc2}));

  c.targets = {"out"};
  EXPECT_TRUE(user_error([&] { attach_adapters(m, c, AdapterKind::personal); }, {"'out'", "fc1"}));
  c.targets = {"proj"};
  c.layers = {3};
  EXPECT_TRUE(
      user_error([&] { attach_adapters(m, c, AdapterKind::personal); }, {"lora.layers: 3"}));
  c.layers = {1};
  c.rank = 13;
  EXPECT_TRUE(
      user_error([&] { attach_adapters(m, c, AdapterKind::personal); }, {"rank 13", "proj"}));
}

TEST(Adapters, BothScalesAreEqualUnlessSaidOtherwise) {
  LoraConfig c;
  c.rank = 8;
  c.personal_rank = 2;
  c.alpha = 12;
  EXPECT_EQ(adapter_scale(c, AdapterKind::general).scale(), 1.5);
  EXPECT_EQ(adapter_scale(c, AdapterKind::personal).scale(), 1.5);
  c.personal_alpha = 8;
  EXPECT_EQ(adapter_scale(c, AdapterKind::personal).scale(), 4);
}

TEST(Adapters, DrawsDependOnTheirKeyAlone) {
  LoraConfig c;
  c.rank = 4;
  auto drawn = [&](AdapterKind kind, uint64_t seed, const std::string& client) {
    Vit m = model();
    attach_adapters(m, c, AdapterKind::general);
    attach_adapters(m, c, AdapterKind::personal);
    if (kind == AdapterKind::personal) draw_adapters(m, c, AdapterKind::general, seed, "");
    draw_adapters(m, c, kind, seed, client);
    const AdapterSlice& slice = *adapter_slices(m)[2];
    const auto values = [&](AdapterKind k) { return adapter_of(slice, k)->a.value().to_vector(); };
    return values(AdapterKind::general) == std::vector<double>(4 * 12, 0.0) ? std::vector<double>{}
                                                                            : values(kind);
  };
  EXPECT_EQ(drawn(AdapterKind::general, 1, "a"), drawn(AdapterKind::general, 1, "b"));
  EXPECT_NE(drawn(AdapterKind::general, 1, ""), drawn(AdapterKind::general, 2, ""));
  EXPECT_EQ(drawn(AdapterKind::personal, 1, "a"), drawn(AdapterKind::personal, 1, "a"));
  EXPECT_NE(drawn(AdapterKind::personal, 1, "a"), drawn(AdapterKind::personal, 1, "b"));
  EXPECT_NE(drawn(AdapterKind::personal, 1, "a"), drawn(AdapterKind::general, 1, "a"));
}

TEST(Adapters, VarianceIsOneOverTheInputs) {
  LoraConfig c;
  c.rank = 12;
  for (const LoraInit init : {LoraInit::normal, LoraInit::peft}) {
    c.init = init;
    Vit m = model();
    attach_adapters(m, c, AdapterKind::general);
    draw_adapters(m, c, AdapterKind::general, 5, "");
    double sum = 0, n = 0, largest = 0;
    for (AdapterSlice* s : adapter_slices(m)) {
      const Adapter& general = *adapter_of(*s, AdapterKind::general);
      const double in = double(general.a.value().cols());
      for (double x : general.a.value().to_vector()) {
        sum += x * x * in;
        largest = std::max(largest, std::abs(x) * std::sqrt(in));
        ++n;
      }
      for (double x : general.b.value().to_vector()) EXPECT_EQ(x, 0);
    }
    EXPECT_NEAR(sum / n, init == LoraInit::normal ? 1.0 : 1.0 / 3, 0.1);
    if (init == LoraInit::peft) {
      EXPECT_LE(largest, 1);
    }
  }
}

TEST(Adapters, OrthogonalStart) {
  LoraConfig c;
  c.rank = 5;
  Vit m = model();
  attach_adapters(m, c, AdapterKind::general);
  attach_adapters(m, c, AdapterKind::personal);
  draw_adapters(m, c, AdapterKind::general, 5, "");
  draw_adapters(m, c, AdapterKind::personal, 5, "x");
  orthogonalise_personal(m);
  for (AdapterSlice* s : adapter_slices(m)) {
    const Tensor g = adapter_of(*s, AdapterKind::general)->a.value(),
                 p = adapter_of(*s, AdapterKind::personal)->a.value();
    for (int64_t i = 0; i < 5; ++i)
      for (int64_t j = 0; j < 5; ++j) {
        double dot = 0;
        for (int64_t k = 0; k < g.cols(); ++k)
          dot += double(g.row<float>(i)[k]) * double(p.row<float>(j)[k]);
        EXPECT_NEAR(dot, 0, 1e-6);
      }
  }
  c.rank = 7;
  Vit wide = model();
  attach_adapters(wide, c, AdapterKind::general);
  attach_adapters(wide, c, AdapterKind::personal);
  EXPECT_TRUE(user_error([&] { orthogonalise_personal(wide); }, {"7 + 7", "12 inputs"}));
}

// Every kind together, against finite differences of the sum that apply() reports.
TEST(Penalties, GradientsReachTheParameters) {
  for (const PenaltyDetach detach : {PenaltyDetach::none, PenaltyDetach::general}) {
    for (const PenaltyForm form : {PenaltyForm::cosine2, PenaltyForm::abs_cosine}) {
      LoraConfig lora;
      lora.rank = 3;
      lora.personal_rank = 2;
      lora.targets = {"q", "fc1"};
      lora.layers = {1};
      Vit m = model(DType::f64);
      attach_adapters(m, lora, AdapterKind::general);
      attach_adapters(m, lora, AdapterKind::personal);
      uint64_t seed = 1;
      std::vector<Var> all;
      for (AdapterSlice* s : adapter_slices(m))
        for (const Adapter& adapter : s->adapters)
          for (const Var& v : {adapter.a, adapter.b}) {
            v.value().copy_from(test::random_tensor(v.shape(), DType::f64, seed++));
            all.push_back(v);
          }
      PenaltyConfig config{
          .update = 1, .base = 20, .subspace = 2, .subspace_l1 = .5, .base_subspace = 1};
      config.form = form;
      config.detach = detach;
      config.base_subspace_k = 4;
      Penalties penalties(m, config);
      auto value = [&] {
        for (const Var& v : all) v.drop_grad();
        const std::vector<double> weights = penalties.weights(1);
        std::vector<double> values(size_t(penalties.kinds() * penalties.layers()));
        penalties.apply(weights.data(), values.data());
        return penalties.sum(values.data());
      };
      value();
      std::vector<Tensor> gradients;
      for (const Var& v : all) gradients.push_back(v.has_grad() ? v.grad().clone() : Tensor());
      for (size_t n = 0; n < all.size(); ++n) {
        const bool general = n % 4 < 2;
        if (general && detach == PenaltyDetach::general) {
          EXPECT_FALSE(gradients[n].defined());
          continue;
        }
        const Tensor& x = all[n].value();
        for (int64_t r = 0; r < x.rows(); ++r)
          for (int64_t c = 0; c < x.cols(); ++c) {
            double& element = x.row<double>(r)[c];
            const double kept = element;
            element = kept + 1e-6;
            const double above = value();
            element = kept - 1e-6;
            const double below = value();
            element = kept;
            EXPECT_NEAR(gradients[n].row<double>(r)[c], (above - below) / 2e-6, 1e-5)
                << word(form) << " input " << n;
          }
      }
    }
  }
}

TEST(Penalties, NeedTwoAdaptersAndAFormTheyHave) {
  Vit m = model();
  LoraConfig lora;
  lora.rank = 2;
  attach_adapters(m, lora, AdapterKind::general);
  EXPECT_TRUE(user_error([&] { Penalties(m, {.update = 1}); }, {"general and a personal"}));
  EXPECT_NO_THROW(Penalties(m, {}));
  attach_adapters(m, lora, AdapterKind::personal);
  PenaltyConfig raw{.subspace = 1};
  raw.form = PenaltyForm::raw2;
  EXPECT_TRUE(
      user_error([&] { Penalties(m, raw); }, {"raw2", "penalty.update and penalty.base only"}));
}

// Of adapters that are wider than the kernels take nothing is measured, and a weight is refused.
TEST(Penalties, OfAdaptersTooWideForThem) {
  VitConfig wide = tiny();
  wide.dim = wide.heads * (kMaxPenaltyRank + 1);
  for (const int64_t rank : {kMaxPenaltyRank, kMaxPenaltyRank + 1}) {
    SCOPED_TRACE(rank);
    Vit m = Vit::from_tensors(wide, Vit::create(wide, DType::f32, 1).tensors(), DType::f32, false);
    LoraConfig lora;
    lora.targets = {"proj"};
    lora.rank = 2;
    lora.personal_rank = rank;
    attach_adapters(m, lora, AdapterKind::general);
    attach_adapters(m, lora, AdapterKind::personal);
    Penalties logged(m, {});
    if (rank <= kMaxPenaltyRank) {
      EXPECT_EQ(logged.measure().count("update"), 1u);
      EXPECT_NO_THROW(Penalties(m, {.update = 1}));
    } else {
      EXPECT_TRUE(logged.measure().empty());
      EXPECT_TRUE(user_error([&] { Penalties(m, {.update = 1}); }, {"lora.rank", "65"}));
    }
  }
}

}  // namespace
}  // namespace orthofed
