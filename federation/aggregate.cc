#include "federation/aggregate.h"

#include <fmt/core.h>

#include <vector>

namespace orthofed {

Weighting parse_weighting(const std::string& text) {
  if (text == "samples") return Weighting::samples;
  if (text == "uniform") return Weighting::uniform;
  throw UserError(
      fmt::format("federation.weights = \"{}\": set it to \"samples\" or \"uniform\"", text));
}

TensorMap average(const std::map<std::string, Contribution>& by_client, Weighting weighting) {
  OF_CHECK(!by_client.empty(), "an average of nothing");
  const auto weight = [&](const Contribution& c) {
    return weighting == Weighting::samples ? double(c.samples) : 1.0;
  };
  double total = 0;
  for (const auto& [client, contribution] : by_client) {
    OF_CHECK(contribution.samples >= 0, "a negative number of samples");
    OF_CHECK(contribution.tensors.size() == by_client.begin()->second.tensors.size(),
             "contributions differ in their tensors");
    total += weight(contribution);
  }
  OF_CHECK(total > 0, "all weights are zero");

  TensorMap result;
  std::vector<double> sum;
  for (const auto& [name, first] : by_client.begin()->second.tensors) {
    const Tensor mean = Tensor::empty(first.shape(), DType::f32);
    for (int64_t r = 0; r < mean.rows(); ++r) {
      sum.assign(size_t(mean.cols()), 0.0);
      for (const auto& [client, contribution] : by_client) {
        const auto it = contribution.tensors.find(name);
        OF_CHECK(it != contribution.tensors.end() && it->second.shape() == first.shape(),
                 "contributions differ in tensor " + name);
        const float* row = it->second.row<float>(r);
        const double w = weight(contribution);
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += w * double(row[i]);
      }
      float* out = mean.row<float>(r);
      for (size_t i = 0; i < sum.size(); ++i) out[i] = float(sum[i] / total);
    }
    result[name] = mean;
  }
  return result;
}

}  // namespace orthofed
