#include "federation/combine/average.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace orthofed {
namespace {

struct Contribution {
  TensorMap tensors;
  int64_t samples = 0;
};

TensorMap average(const std::map<std::string, Contribution>& by_client, Weighting weighting) {
  Average sum(weighting);
  for (const auto& [client, c] : by_client) sum.add(c.tensors, c.samples);
  return sum.result();
}

Tensor vector_of(std::vector<float> values) {
  const Shape shape{int64_t(values.size())};
  return Tensor::of(values, shape);
}

TEST(Average, WeighsBySamples) {
  const std::map<std::string, Contribution> parts = {{"a", {{{"x", vector_of({1, -2})}}, 1}},
                                                     {"b", {{{"x", vector_of({5, 2})}}, 3}}};
  const TensorMap mean = average(parts, Weighting::samples);
  EXPECT_EQ(mean.at("x").to_vector(), (std::vector<double>{4, 1}));
}

TEST(Average, UniformCountsEveryClientOnce) {
  const std::map<std::string, Contribution> parts = {{"a", {{{"x", vector_of({1})}}, 1}},
                                                     {"b", {{{"x", vector_of({5})}}, 0}}};
  EXPECT_EQ(average(parts, Weighting::uniform).at("x").item(), 3);
  EXPECT_EQ(average(parts, Weighting::samples).at("x").item(), 1);
}

TEST(Average, OfOneAndOfEqualsIsTheSameBits) {
  const Tensor x = vector_of({0.1f, 1e-38f, 3e38f, -0.3f, 1e-45f});
  std::map<std::string, Contribution> parts;
  for (int64_t n : {7, 11, 13, 9930, 351}) {
    parts[std::to_string(n)] = {{{"x", x}}, n};
    EXPECT_EQ(average(parts, Weighting::samples).at("x").to_vector(), x.to_vector());
  }
}

TEST(Average, RoundsOnce) {
  // In f32 the small terms would vanish one by one: 2^24 + 1 = 2^24.
  std::map<std::string, Contribution> parts = {{"a", {{{"x", vector_of({16777216})}}, 1}}};
  for (int i = 0; i < 7; ++i) parts[std::to_string(i)] = {{{"x", vector_of({1})}}, 1};
  EXPECT_EQ(average(parts, Weighting::samples).at("x").item(), float((16777216.0 + 7) / 8));
}

TEST(Average, AgreesWithDoubleOnRandomInputs) {
  std::mt19937 random(20250117);
  std::normal_distribution<float> normal;
  for (int64_t cols : {1, 3, 4, 5, 17}) {
    std::map<std::string, Contribution> parts;
    std::vector<double> sum(size_t(3 * cols), 0.0);
    double total = 0;
    for (const char* client : {"c", "a", "b"}) {
      std::vector<float> values(size_t(3 * cols));
      for (float& v : values) v = normal(random);
      const auto n = int64_t(random() % 1000 + 1);
      for (size_t i = 0; i < values.size(); ++i) sum[i] += double(n) * double(values[i]);
      total += double(n);
      parts[client] = {{{"x", Tensor::of(values, {3, cols})}}, n};
    }
    const auto mean = average(parts, Weighting::samples).at("x").to_vector();
    for (size_t i = 0; i < sum.size(); ++i) {
      const double expected = sum[i] / total;
      // One rounding to f32, and double sums that may differ in their last bits.
      EXPECT_TRUE(std::fabs(mean[i] - expected) <= std::ldexp(std::fabs(expected), -24) + 1e-13)
          << mean[i] << " for " << expected;
    }
  }
}

// Whatever the order, and whatever cancels: with doubles 1e30 + 1 - 1e30 depends on it.
TEST(Average, DoesNotDependOnTheOrder) {
  std::vector<std::pair<float, int64_t>> parts = {{1e30f, 1},  {-1e30f, 1},       {3, 5},
                                                  {1e-45f, 7}, {-3e38f, 1 << 29}, {3e38f, 1 << 29}};
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  for (int i = 0; i < 200; ++i) {
    const float x = std::ldexp(normal(random), int(random() % 200) - 100);
    parts.emplace_back(x, int64_t(random() % 100000));
    parts.emplace_back(-x, parts.back().second);
  }
  for (int trial = 0; trial < 5; ++trial) {
    std::shuffle(parts.begin(), parts.end(), random);
    ExactSum sum;
    for (const auto& [x, weight] : parts) sum.add(weight, x);
    EXPECT_EQ(sum.value(), 15 + 7 * std::ldexp(1.0, -149)) << "trial " << trial;
    sum.add(5, -3.0f);
    EXPECT_EQ(sum.value(), 7 * std::ldexp(1.0, -149));
    sum.add(8, -std::ldexp(1.0f, -149));
    EXPECT_EQ(sum.value(), -std::ldexp(1.0, -149));
  }
}

TEST(Average, HoldsTheLargestProducts) {
  const int64_t most = (int64_t{1} << 39) - 1;
  ExactSum sum;
  for (int i = 0; i < 1000; ++i) sum.add(most, std::numeric_limits<float>::max());
  const double want = 1000 * double(most) * double(std::numeric_limits<float>::max());
  EXPECT_TRUE(std::fabs(sum.value() - want) <= 0x1p-50 * want);
  for (int i = 0; i < 2000; ++i) sum.add(most, std::numeric_limits<float>::lowest());
  EXPECT_TRUE(std::fabs(sum.value() + want) <= 0x1p-50 * want);
}

TEST(Average, OfEmptyMapsIsEmpty) {
  EXPECT_TRUE(average({{"a", {{}, 3}}, {"b", {{}, 2}}}, Weighting::samples).empty());
}

TEST(Average, PaddingStaysZero) {
  const TensorMap mean =
      average({{"a", {{{"x", Tensor::full({2, 3}, DType::f32, 5)}}, 1}}}, Weighting::samples);
  const Tensor& x = mean.at("x");
  ASSERT_EQ(x.pitch(), 4);
  EXPECT_EQ(x.data<float>()[3], 0);
}

TEST(Average, RefusesWhatDoesNotFitTogether) {
  const Contribution one{{{"x", vector_of({1})}}, 1};
  EXPECT_THROW(average({}, Weighting::samples), Error);
  EXPECT_THROW(average({{"a", {{{"x", vector_of({1})}}, 0}}}, Weighting::samples), Error);
  EXPECT_THROW(average({{"a", one}, {"b", {{{"y", vector_of({1})}}, 1}}}, Weighting::samples),
               Error);
  EXPECT_THROW(average({{"a", one}, {"b", {{{"x", vector_of({1, 2})}}, 1}}}, Weighting::samples),
               Error);
  EXPECT_THROW(average({{"a", one}, {"b", {{}, 1}}}, Weighting::samples), Error);
  EXPECT_THROW(average({{"a", {{{"x", vector_of({INFINITY})}}, 1}}}, Weighting::samples), Error);
}

}  // namespace
}  // namespace orthofed
