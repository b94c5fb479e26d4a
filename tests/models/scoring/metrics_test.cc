#include "models/scoring/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/philox.h"

namespace orthofed {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

// Forty samples of five classes of which the last has none; scores have one decimal, so that there
// are many ties. Made with numpy 2.4.6:
//   rng = numpy.random.RandomState(7); y = rng.choice(4, 40, p=[.4, .3, .2, .1])
//   scores = numpy.round(rng.randn(40, 5) + 1.2 * numpy.eye(5)[y], 1)
// and what is expected below with scikit-learn 1.9.1: confusion_matrix(y, scores.argmax(1),
// labels=range(5)), accuracy_score, balanced_accuracy_score, recall_score(average=None), and
// roc_auc_score(y == c, scores[:, c]) for c in 0..3.
const std::vector<int32_t> labels = {0, 2, 1, 2, 3, 1, 1, 0, 0, 1, 1, 2, 0, 0, 0, 3, 0, 1, 3, 0,
                                     1, 3, 0, 1, 3, 0, 1, 2, 1, 1, 0, 1, 0, 1, 0, 2, 2, 0, 1, 0};
// clang-format off
const std::vector<float> scores = {
    -0.9, -0.7, -1.2, 1.5, 1.8,  -0.3, 0.8, 1.0, 0.6, -0.8,  -1.7, -0.6, 0.4, 2.2, 0.3,
    -0.5, 1.9, 1.4, 0.1, 0.3,  -0.1, -0.3, -1.4, 1.7, -0.1,  1.2, 0.8, -1.9, -0.1, 1.7,
    -0.4, 0.3, -1.2, -1.1, -0.3,  0.0, 1.5, -0.3, 0.1, 1.4,  2.7, -0.2, 0.3, 0.7, -0.2,
    -1.8, 1.9, 0.9, 0.4, -0.9,  -0.2, 0.6, -0.3, 1.3, 1.5,  0.7, 0.5, 1.9, -0.0, -0.1,
    0.5, -0.1, 2.3, 0.9, -0.3,  0.7, -0.9, 0.4, 0.4, -1.4,  1.7, -0.6, 1.4, 0.2, 1.7,
    -0.5, -0.3, 0.3, 2.3, 0.6,  -0.0, 0.2, 0.0, -0.4, -0.6,  1.7, 0.8, -0.8, 0.6, 0.1,
    -0.1, 0.8, 0.5, 1.6, 1.0,  1.5, -0.6, -0.4, -0.5, 0.2,  -1.1, -0.6, 0.1, -1.3, -2.0,
    0.4, -0.7, 0.5, 0.7, -1.1,  -0.0, -0.5, -0.3, -0.8, -0.3,  -1.5, 1.2, -1.8, -0.2, 0.7,
    1.1, 1.7, -1.6, 2.0, 1.2,  2.2, -0.9, 0.4, 1.9, -1.5,  0.5, 2.3, -0.7, 0.6, -1.1,
    -0.8, -0.8, 1.4, -0.1, 1.0,  -0.9, 1.1, 1.0, 0.6, -1.3,  0.7, 0.7, 0.4, 0.3, 1.2,
    1.3, -1.9, -1.4, 0.7, -0.3,  1.1, 1.5, -0.7, 1.1, -0.8,  -0.9, 2.1, -1.9, 0.6, 0.9,
    0.1, -0.5, 1.0, -1.4, -1.3,  0.8, 0.8, 0.3, 0.8, -0.4,  -0.2, -1.1, 0.9, 0.6, -0.3,
    0.5, -0.6, 0.6, 0.0, -0.2,  1.8, 0.2, 1.7, -0.2, -0.2,  -1.0, 1.2, 0.7, -0.7, -0.0,
    1.9, -0.1, -0.5, 1.0, 0.1};
// clang-format on

void expect_equal(const std::vector<double>& got, const std::vector<double>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(want[i]))
      EXPECT_TRUE(std::isnan(got[i])) << i << ": " << got[i];
    else
      EXPECT_TRUE(std::abs(got[i] - want[i]) <= 1e-15) << i << ": " << got[i] << " " << want[i];
  }
}

TEST(Metrics, AgreeWithScikitLearn) {
  const auto confusion = confusion_matrix(labels, predicted_classes(scores, 5), 5);
  const Confusion want = {
      {10, 3, 1, 0, 1}, {1, 7, 2, 1, 3}, {0, 1, 5, 0, 0}, {0, 0, 0, 5, 0}, {0, 0, 0, 0, 0}};
  EXPECT_EQ(confusion, want);
  expect_equal({accuracy(confusion)}, {0.675});
  expect_equal({balanced_accuracy(confusion)}, {0.75});
  expect_equal(recall_per_class(confusion), {0.6666666666666666, 0.5, 0.8333333333333334, 1, nan});
}

TEST(Metrics, AurocAgreesWithScikitLearn) {
  const Auroc area = auroc(scores, labels, 5);
  expect_equal(area.per_class, {0.7666666666666666, 0.7239010989010989, 0.8897058823529411,
                                0.9199999999999999, nan});
  expect_equal({area.macro}, {0.8250684119801767});
  EXPECT_EQ(area.classes_scored, (std::vector<int64_t>{0, 1, 2, 3}));
}

TEST(Metrics, AurocCountsEveryPair) {
  for (uint64_t seed : {1, 2, 3}) {
    std::printf("[   seed   ] %llu\n", static_cast<unsigned long long>(seed));
    const Philox rng{seed};
    for (int n : {1, 2, 3, 101}) {
      std::vector<float> s(n * 3);
      std::vector<int32_t> y(n);
      for (int i = 0; i < n; ++i) y[i] = static_cast<int32_t>(rng(i, 1)[0] % 3);
      for (int i = 0; i < n * 3; ++i) s[i] = float(rng(i, 2)[0] % 7);  // seven levels
      std::vector<double> want;
      for (int c = 0; c < 3; ++c) {
        double wins = 0, pairs = 0;
        for (int i = 0; i < n; ++i)
          for (int j = 0; j < n; ++j)
            if (y[i] == c && y[j] != c) {
              pairs += 1;
              wins += s[i * 3 + c] > s[j * 3 + c] ? 1 : s[i * 3 + c] == s[j * 3 + c] ? 0.5 : 0;
            }
        want.push_back(pairs == 0 ? nan : wins / pairs);
      }
      expect_equal(auroc(s, y, 3).per_class, want);
    }
  }
}

TEST(Metrics, Edges) {
  const Confusion nothing(3, std::vector<int64_t>(3, 0));
  EXPECT_TRUE(std::isnan(accuracy(nothing)));
  EXPECT_TRUE(std::isnan(balanced_accuracy(nothing)));
  const Auroc none = auroc({}, {}, 3);
  EXPECT_TRUE(std::isnan(none.macro));
  EXPECT_TRUE(none.classes_scored.empty());
  const Auroc one_class = auroc({0.1f, 0.9f, 0.2f, 0.8f}, {1, 1}, 2);  // no negatives, no positives
  EXPECT_TRUE(one_class.classes_scored.empty());
  EXPECT_EQ(auroc({0, 0, 0, 0}, {0, 1}, 2).macro, 0.5) << "all level";
  EXPECT_EQ(predicted_classes({1, 3, 3, 2, 2, 2}, 3), (std::vector<int32_t>{1, 0}))
      << "the first of equals";
}

TEST(Metrics, BadInputIsRefused) {
  EXPECT_THROW(confusion_matrix({0, 3}, {0, 0}, 3), Error);
  EXPECT_THROW(confusion_matrix({0, 0}, {0, -1}, 3), Error);
  EXPECT_THROW(confusion_matrix({0}, {0, 1}, 3), Error);
  EXPECT_THROW(auroc({0, 1, 2}, {0}, 2), Error);
  EXPECT_THROW(auroc({0, 1}, {2}, 2), Error);
  EXPECT_THROW(auroc({0, std::numeric_limits<float>::quiet_NaN()}, {0}, 2), Error);
  EXPECT_THROW(sum_of({Confusion(2, {0, 0}), Confusion(3, {0, 0, 0})}), Error);
}

// Two sites, of which the second has nothing of class 1.
const std::vector<Confusion> sites = {{{40, 5, 3}, {6, 20, 4}, {1, 2, 9}},
                                      {{12, 0, 1}, {0, 0, 0}, {3, 3, 30}}};

TEST(UnionScores, ValueIsThatOfTheSummedMatrix) {
  EXPECT_EQ(sum_of(sites), (Confusion{{52, 5, 4}, {6, 20, 4}, {4, 5, 39}}));
  const UnionScores scored = union_scores(sites);
  expect_equal({scored.accuracy.value}, {111.0 / 139});
  expect_equal({scored.balanced_accuracy.value}, {(52.0 / 61 + 20.0 / 30 + 39.0 / 48) / 3});
}

// The interval of 50,000 resamples drawn by numpy from the samples themselves:
//   for every site and class c: pred[rng.integers(0, n, (50000, n))] == c, hits summed over sites,
//   numpy.percentile(..., [2.5, 97.5])
// The same bootstrap with 2,000 resamples moves an end by about 0.004.
TEST(UnionScores, IntervalAgreesWithABootstrapOfTheSamples) {
  const UnionScores scored = union_scores(sites, 1);
  EXPECT_NEAR(scored.balanced_accuracy.low, 0.7025, 0.008);
  EXPECT_NEAR(scored.balanced_accuracy.high, 0.8480, 0.008);
  EXPECT_NEAR(scored.accuracy.low, 0.7338, 0.008);
  EXPECT_NEAR(scored.accuracy.high, 0.8633, 0.008);
}

TEST(UnionScores, IsAFunctionOfTheSeed) {
  const auto ends = [](uint64_t seed) {
    const UnionScores s = union_scores(sites, seed);
    return std::vector<double>{s.balanced_accuracy.low, s.balanced_accuracy.high, s.accuracy.low,
                               s.accuracy.high};
  };
  EXPECT_EQ(ends(3), ends(3));
  EXPECT_NE(ends(3), ends(4));
}

TEST(UnionScores, Edges) {
  const UnionScores sure = union_scores({{{7, 0}, {0, 5}}});
  EXPECT_EQ(sure.balanced_accuracy.low, 1);
  EXPECT_EQ(sure.balanced_accuracy.high, 1);
  const UnionScores wrong = union_scores({{{0, 7}, {5, 0}}});
  EXPECT_EQ(wrong.accuracy.high, 0);
  const UnionScores empty = union_scores({{{0, 0}, {0, 0}}});
  EXPECT_TRUE(std::isnan(empty.balanced_accuracy.value) && std::isnan(empty.accuracy.low));
  EXPECT_TRUE(std::isnan(union_scores({}).accuracy.value));
}

}  // namespace
}  // namespace orthofed
