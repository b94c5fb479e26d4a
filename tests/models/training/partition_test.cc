#include "models/training/partition.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/philox.h"

namespace orthofed {
namespace {

std::vector<int32_t> some_labels(int64_t n, int32_t classes) {
  std::vector<int32_t> labels;
  const Philox rng{17};
  for (int64_t i = 0; i < n; ++i) {  // class 0 is the largest
    const uint32_t a = rng(static_cast<uint64_t>(i))[0] % static_cast<uint32_t>(classes);
    const uint32_t b = rng(static_cast<uint64_t>(i))[1] % static_cast<uint32_t>(classes);
    labels.push_back(static_cast<int32_t>(std::min(a, b)));
  }
  return labels;
}

testing::AssertionResult is_partition(const Partition& p, int64_t samples, int64_t clients) {
  if (std::ssize(p) != clients) return testing::AssertionFailure() << p.size() << " clients";
  std::vector<int64_t> all;
  for (const auto& client : p) {
    if (client.empty()) return testing::AssertionFailure() << "an empty client";
    if (!std::is_sorted(client.begin(), client.end()))
      return testing::AssertionFailure() << "not ascending";
    all.insert(all.end(), client.begin(), client.end());
  }
  std::sort(all.begin(), all.end());
  std::vector<int64_t> want(samples);
  std::iota(want.begin(), want.end(), int64_t{0});
  if (all != want) return testing::AssertionFailure() << "a sample is missing or there twice";
  return testing::AssertionSuccess();
}

int64_t classes_of(const std::vector<int64_t>& client, const std::vector<int32_t>& labels) {
  std::set<int32_t> present;
  for (int64_t i : client) present.insert(labels[i]);
  return std::ssize(present);
}

TEST(Partition, TheCheckFindsPlantedFaults) {
  EXPECT_TRUE(is_partition({{0, 2}, {1}}, 3, 2));
  EXPECT_FALSE(is_partition({{0, 2}, {}}, 2, 2));
  EXPECT_FALSE(is_partition({{0, 2}, {1, 2}}, 3, 2));
  EXPECT_FALSE(is_partition({{0}, {2}}, 3, 2));
  EXPECT_FALSE(is_partition({{2, 0}, {1}}, 3, 2));
}

TEST(Partition, EverySampleOnceAndNoClientEmpty) {
  for (int64_t n : {1, 2, 7, 97, 1000})
    for (int64_t clients : {1, 2, 3, 7}) {
      if (n < clients) continue;
      const auto labels = some_labels(n, 5);
      for (uint64_t seed : {0, 1, 2}) {
        for (double alpha : {1e-3, 0.1, 1.0, 100.0}) {
          SCOPED_TRACE(std::to_string(n) + " over " + std::to_string(clients));
          EXPECT_TRUE(is_partition(partition_dirichlet(labels, clients, alpha, seed), n, clients));
          EXPECT_TRUE(is_partition(partition_quantity(n, clients, alpha, seed), n, clients));
        }
        for (int64_t shards : {1, 2, 5})
          if (n >= clients * shards) {
            EXPECT_TRUE(is_partition(partition_shards(labels, clients, shards, seed), n, clients));
          }
      }
    }
}

TEST(Partition, IsAFunctionOfTheSeed) {
  const auto labels = some_labels(200, 4);
  const auto all = [&](uint64_t seed) {
    return std::vector<Partition>{partition_dirichlet(labels, 4, 0.5, seed),
                                  partition_quantity(200, 4, 0.5, seed),
                                  partition_shards(labels, 4, 2, seed)};
  };
  const auto once = all(5), again = all(5), other = all(6);
  for (size_t i = 0; i < once.size(); ++i) {
    EXPECT_EQ(once[i], again[i]);
    EXPECT_NE(once[i], other[i]);
  }
}

// The share p of one client is Beta(alpha, (K-1) alpha): mean 1/K, variance
// (1/K)(1 - 1/K) / (K alpha + 1). Over 600 draws the standard error of the variance is below 10 %.
TEST(Partition, ProportionsHaveTheMomentsOfADirichlet) {
  constexpr int64_t n = 500, clients = 4;
  for (double alpha : {0.1, 0.5, 1.0, 5.0}) {
    double sum = 0, squares = 0;
    const int draws = 600;
    for (int seed = 0; seed < draws; ++seed) {
      const double share = double(partition_quantity(n, clients, alpha, seed)[0].size()) / n;
      sum += share;
      squares += share * share;
    }
    const double mean = sum / draws, variance = squares / draws - mean * mean;
    const double want = 0.25 * 0.75 / (clients * alpha + 1);
    EXPECT_NEAR(mean, 0.25, 4 * std::sqrt(want / draws)) << alpha;
    EXPECT_NEAR(variance, want, 0.3 * want) << alpha;
  }
}

// A client is tested on what it is trained on: the proportions do not depend on how many samples
// there are. deal() rounds each boundary, so a share is exact to one sample.
TEST(Partition, TrainAndTestAreDividedAlike) {
  const int64_t clients = 4;
  std::vector<int32_t> few, many;
  for (int32_t i = 0; i < 300; ++i) few.push_back(i % 3);
  for (int32_t i = 0; i < 3000; ++i) many.push_back(i % 3);
  for (const uint64_t seed : {0, 1, 2}) {
    const Partition a = partition_dirichlet(few, clients, 0.5, seed),
                    b = partition_dirichlet(many, clients, 0.5, seed),
                    c = partition_quantity(300, clients, 0.5, seed),
                    d = partition_quantity(3000, clients, 0.5, seed),
                    e = partition_shards(few, clients, 3, seed),
                    f = partition_shards(many, clients, 3, seed);
    for (size_t k = 0; k < size_t(clients); ++k) {
      for (int32_t label = 0; label < 3; ++label) {
        const auto share = [&](const Partition& p, const std::vector<int32_t>& labels) {
          return double(std::count_if(p[k].begin(), p[k].end(),
                                      [&](int64_t i) { return labels[size_t(i)] == label; })) *
                 3 / double(labels.size());
        };
        EXPECT_NEAR(share(a, few), share(b, many), 0.02) << seed << " " << k << " " << label;
        EXPECT_NEAR(share(e, few), share(f, many), 0.02) << seed << " " << k << " " << label;
      }
      EXPECT_NEAR(double(c[k].size()) / 300, double(d[k].size()) / 3000, 0.01) << seed;
    }
  }
}

TEST(Partition, AlphaSetsTheClassSkew) {
  const std::vector<int32_t> labels = some_labels(4000, 4);
  const auto skewed = partition_dirichlet(labels, 4, 0.01, 1);
  const auto even = partition_dirichlet(labels, 4, 1e4, 1);
  int64_t skewed_classes = 0;
  for (const auto& client : skewed) skewed_classes += classes_of(client, labels);
  EXPECT_LE(skewed_classes, 8) << "of 16: most classes lie with one client";
  for (const auto& client : even) {
    std::map<int32_t, int64_t> count;
    for (int64_t i : client) ++count[labels[i]];
    for (int32_t c = 0; c < 4; ++c) {
      const auto all = std::count(labels.begin(), labels.end(), c);
      EXPECT_NEAR(double(count[c]), double(all) / 4, 0.05 * double(all));
    }
  }
}

TEST(Partition, ShardsLimitTheClassesOfAClient) {
  std::vector<int32_t> labels;  // 10 classes of 100, in mixed order
  for (int i = 0; i < 1000; ++i) labels.push_back(i * 7 % 10);
  for (const auto& client : partition_shards(labels, 5, 2, 3)) {
    EXPECT_LE(classes_of(client, labels), 2);
    EXPECT_EQ(client.size(), 200u);
  }
}

TEST(Partition, BadInputIsRefused) {
  const auto labels = some_labels(10, 3);
  EXPECT_THROW(partition_dirichlet(labels, 11, 1, 0), UserError);
  EXPECT_THROW(partition_dirichlet(labels, 0, 1, 0), UserError);
  EXPECT_THROW(partition_dirichlet(labels, 2, 0, 0), UserError);
  EXPECT_THROW(partition_quantity(10, 2, std::numeric_limits<double>::quiet_NaN(), 0), UserError);
  EXPECT_THROW(partition_quantity(10, 2, -1, 0), UserError);
  EXPECT_THROW(partition_shards(labels, 4, 3, 0), UserError);
  EXPECT_THROW(partition_shards(labels, -2, -3, 0), UserError);
  EXPECT_THROW(partition_shards(labels, 2, 0, 0), UserError);
}

std::vector<std::string> paths(int64_t n) {
  std::vector<std::string> result;
  for (int64_t i = 0; i < n; ++i) result.push_back("images/" + std::to_string(i) + ".png");
  return result;
}

std::map<int32_t, int64_t> counts(const std::vector<int64_t>& samples,
                                  const std::vector<int32_t>& labels) {
  std::map<int32_t, int64_t> result;
  for (int64_t i : samples) ++result[labels[i]];
  return result;
}

TEST(Validation, TakesAFifthOfEveryClassWithAtLeastFive) {
  std::vector<int32_t> labels;
  for (int32_t c = 0; c < 12; ++c) labels.insert(labels.end(), c, c);  // class c has c samples
  labels.insert(labels.end(), 100, 12);
  const auto cut = cut_validation(labels, paths(std::ssize(labels)), 0.2, 1);
  EXPECT_TRUE(is_partition({cut.train, cut.validation}, std::ssize(labels), 2));
  auto taken = counts(cut.validation, labels);
  for (int32_t c = 0; c < 12; ++c) EXPECT_EQ(taken[c], c < 5 ? 0 : c / 5) << c;
  EXPECT_EQ(taken[12], 20);
}

TEST(Validation, DoesNotDependOnTheOrderOfTheRows) {
  const auto labels = some_labels(300, 4);
  const auto keys = paths(300);
  const auto names = [&](const std::vector<int64_t>& samples, const std::vector<std::string>& of) {
    std::set<std::string> result;
    for (int64_t i : samples) result.insert(of[i]);
    return result;
  };
  const auto want = names(cut_validation(labels, keys, 0.2, 7).validation, keys);
  auto labels_back = labels;
  auto keys_back = keys;
  std::reverse(labels_back.begin(), labels_back.end());
  std::reverse(keys_back.begin(), keys_back.end());
  const auto back = cut_validation(labels_back, keys_back, 0.2, 7);
  EXPECT_EQ(names(back.validation, keys_back), want);
  EXPECT_NE(names(cut_validation(labels, keys, 0.2, 8).validation, keys), want) << "another seed";
}

// The order is that of sha256("seed|path"); printf '3|a' | sha256sum and so on give
//   3|a a8d5d9d9..., 3|b 5fba7ca2..., 3|c ae1e6f16..., 3|d ebda6e36..., 3|e f6d4332c...
TEST(Validation, OrderIsThatOfTheDigest) {
  const std::vector<std::string> keys = {"a", "b", "c", "d", "e"};
  const auto cut = cut_validation({0, 0, 0, 0, 0}, keys, 0.2, 3);
  EXPECT_EQ(cut.validation, std::vector<int64_t>{1});
}

TEST(Validation, GroupsStayWholeAndComeCloseToTheQuota) {
  std::vector<int32_t> labels;
  std::vector<std::string> groups;
  const Philox rng{5};
  for (int patient = 0; patient < 60; ++patient) {
    const uint32_t images = 1 + rng(patient)[0] % 9;
    for (uint32_t i = 0; i < images; ++i) {
      labels.push_back(static_cast<int32_t>(rng(patient, i + 1)[1] % 3));
      groups.push_back("patient " + std::to_string(patient));
    }
  }
  const auto cut = cut_validation(labels, groups, 0.2, 1);
  EXPECT_TRUE(is_partition({cut.train, cut.validation}, std::ssize(labels), 2));
  std::set<std::string> train, both;
  for (int64_t i : cut.train) train.insert(groups[i]);
  for (int64_t i : cut.validation)
    if (train.contains(groups[i])) both.insert(groups[i]);
  EXPECT_TRUE(both.empty());
  std::vector<int64_t> all(labels.size());
  std::iota(all.begin(), all.end(), int64_t{0});
  auto total = counts(all, labels), taken = counts(cut.validation, labels);
  for (int32_t c = 0; c < 3; ++c)
    EXPECT_NEAR(double(taken[c]), 0.2 * double(total[c]), 4) << "less than a group";
}

TEST(Validation, AGroupNeverTakesARareClassOrTheLastOfOne) {
  // One patient has all of class 1 (5 images) and nothing else; another all of class 2 (3 images)
  // and many of class 0.
  std::vector<int32_t> labels(20, 0);
  std::vector<std::string> groups(10, "x");
  groups.insert(groups.end(), 10, "y");
  labels.insert(labels.end(), 5, 1), groups.insert(groups.end(), 5, "only");
  labels.insert(labels.end(), 3, 2), groups.insert(groups.end(), 3, "x");
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto cut = cut_validation(labels, groups, 0.2, seed);
    auto train = counts(cut.train, labels);
    EXPECT_EQ(train[1], 5);
    EXPECT_EQ(train[2], 3);
    EXPECT_GE(train[0], 10);
  }
}

TEST(Validation, Edges) {
  EXPECT_TRUE(cut_validation({}, {}, 0.2, 0).train.empty());
  EXPECT_EQ(cut_validation({1}, {"a"}, 0.2, 0).train.size(), 1u);
  EXPECT_TRUE(cut_validation(some_labels(50, 2), paths(50), 0, 0).validation.empty());
  EXPECT_THROW(cut_validation({1}, {"a"}, 1.0, 0), UserError);
  EXPECT_THROW(cut_validation({1}, {"a"}, -0.1, 0), UserError);
  EXPECT_THROW(cut_validation({1, 2}, {"a"}, 0.2, 0), Error);
}

}  // namespace
}  // namespace orthofed
