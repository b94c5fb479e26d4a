// The `features` penalty, which is computed while backward passes a layer.
#include "models/training/penalty.h"

#include <gtest/gtest.h>

#include "tests/support/graph.h"

namespace orthofed {
namespace {

using test::random_tensor;

Var leaf(const Shape& shape, uint64_t seed) {
  return Var(random_tensor(shape, DType::f64, seed), true, "leaf");
}

// Two slices with both adapters, and a third one between them that the penalty is not about.
Linear adapted_linear() {
  Linear layer(leaf({6, 5}, 20), leaf({6}, 21), DType::f64);
  uint64_t seed = 30;
  for (int64_t s = 0; s < 2; ++s)
    for (const auto& [name, rank, scale] :
         {std::tuple{"general", int64_t{2}, 0.7}, std::tuple{"nobody", int64_t{1}, 0.9},
          std::tuple{"personal", int64_t{3}, 1.3}}) {
      layer.adapters.add("s" + std::to_string(s), s * 3, 3,
                         {name, leaf({rank, 5}, seed), leaf({3, rank}, seed + 1), scale});
      seed += 2;
    }
  layer.refresh_adapters();
  return layer;
}

std::vector<Var> parameters(const Linear& layer) {
  std::vector<Var> all = {layer.weight, layer.bias};
  for (const AdapterSlice& s : layer.adapters.slices())
    for (const Adapter& a : s.adapters) all.insert(all.end(), {a.a, a.b});
  return all;
}

// loss = sum(w y) + weight * sum over the slices of the features term: the value, and with
// `weighted` the gradients of both parts at once.
double run(Linear& layer, bool weighted, bool detach_general = false) {
  const Var x = leaf({4, 5}, 22);
  const Tensor w = random_tensor({4, 6}, DType::f64, 23);
  for (const Var& v : parameters(layer)) v.drop_grad();
  layer.refresh_adapters();
  Linear::Saved saved;
  const std::vector<double> y = layer.forward(x.value(), &saved).to_vector(), v = w.to_vector();
  double loss = 0;
  for (size_t i = 0; i < y.size(); ++i) loss += y[i] * v[i];
  std::vector<double> values(2);
  const double weight = 0.5;
  FeaturesPenalty penalty(PenaltyForm::cosine2, detach_general, 4, weighted ? &weight : nullptr,
                          values.data());
  layer.backward(w, saved, true, &penalty);
  EXPECT_EQ(penalty.layers(), 2);
  return loss + weight * (values[0] + values[1]);
}

TEST(FeaturesPenalty, GradientsAgreeWithFiniteDifferences) {
  Linear layer = adapted_linear();
  run(layer, true);
  const std::vector<Var> all = parameters(layer);
  std::vector<Tensor> gradients;
  for (const Var& v : all) gradients.push_back(v.grad().clone());
  for (size_t n = 0; n < all.size(); ++n) {
    const Var& v = all[n];
    const Tensor& got = gradients[n];
    for (int64_t r = 0; r < got.rows(); ++r)
      for (int64_t c = 0; c < got.cols(); ++c) {
        double& element = v.value().row<double>(r)[c];
        const double kept = element;
        element = kept + 1e-5;
        const double above = run(layer, false);
        element = kept - 1e-5;
        const double below = run(layer, false);
        element = kept;
        EXPECT_NEAR(got.row<double>(r)[c], (above - below) / 2e-5, 1e-6);
      }
  }
}

TEST(FeaturesPenalty, DetachedItMovesThePersonalAdapterAlone) {
  Linear layer = adapted_linear();
  const auto gradients = [&](bool weighted, bool detach_general, const std::string& name) {
    run(layer, weighted, detach_general);
    std::vector<double> all;
    for (const AdapterSlice& s : layer.adapters.slices())
      for (const Var& v : {s.find(name)->a, s.find(name)->b})
        for (const double x : v.grad().to_vector()) all.push_back(x);
    return all;
  };
  for (const char* name : {"general", "nobody"})
    EXPECT_EQ(gradients(true, true, name), gradients(false, true, name));
  EXPECT_EQ(gradients(true, true, "personal"), gradients(true, false, "personal"));
  EXPECT_NE(gradients(true, true, "personal"), gradients(false, true, "personal"));
  EXPECT_NE(gradients(true, false, "general"), gradients(false, false, "general"));
}

TEST(FeaturesPenalty, DoesNotGoWithMergedAdapters) {
  Linear layer = adapted_linear();
  layer.set_strategy(AdapterStrategy::merged);
  EXPECT_THROW(run(layer, true), Error);
  run(layer, false);  // but its value can be had
}

}  // namespace
}  // namespace orthofed
