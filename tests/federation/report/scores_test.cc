#include "federation/report/scores.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "federation/report/model_card.h"

namespace orthofed {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr auto personal = &ClientSummary::personal, general = &ClientSummary::general;

SiteMetrics metrics(double balanced, double auroc, Confusion confusion) {
  return {.samples = 4,
          .accuracy = balanced,
          .balanced_accuracy = balanced,
          .auroc = auroc,
          .classes_scored = {},
          .confusion = std::move(confusion)};
}

// Site b has images of one class alone: no area under a curve. Site c shares nothing.
RunSummary run() {
  RunSummary summary;
  for (const char* name : {"a", "b", "c"}) summary.clients.emplace_back().name = name;
  summary.clients[0].personal = metrics(0.5, 0.75, {{2, 2}, {0, 0}});
  summary.clients[0].general = metrics(0.25, nan, {});
  summary.clients[1].personal = metrics(1, nan, {{4, 0}, {0, 0}});
  return summary;
}

TEST(RunScores, MeansAreOverTheClientsThatDefineAScore) {
  const RunSummary s = run();
  EXPECT_EQ(mean_over_clients(s, personal, &SiteMetrics::balanced_accuracy), 0.75);
  EXPECT_EQ(mean_over_clients(s, personal, &SiteMetrics::auroc), 0.75);
  EXPECT_EQ(mean_over_clients(s, general, &SiteMetrics::balanced_accuracy), 0.25);
  EXPECT_TRUE(std::isnan(mean_over_clients(s, general, &SiteMetrics::auroc)));
  EXPECT_TRUE(std::isnan(mean_over_clients({}, personal, &SiteMetrics::accuracy)));
  EXPECT_TRUE(std::isnan(score_of(s.clients[2], personal, &SiteMetrics::accuracy)));
}

TEST(RunScores, TheUnionNeedsEveryMatrix) {
  RunSummary s = run();
  EXPECT_FALSE(union_of_sites(s));
  EXPECT_FALSE(union_of_sites({}));
  s.clients.pop_back();
  ASSERT_TRUE(union_of_sites(s));
  EXPECT_EQ(union_of_sites(s)->accuracy.value, 0.75);
  s.clients[1].personal->confusion.clear();
  EXPECT_FALSE(union_of_sites(s));
}

TEST(RunScores, ACardHasTheSameMeans) {
  ModelCard card;
  card.summary = run();
  const std::string text = to_markdown(card, std::vector<AdapterFile>(1));
  EXPECT_NE(text.find("\n| mean | | | 0.750 | 0.750 | 0.750 | |\n"), std::string::npos) << text;
  EXPECT_NE(text.find("\n| b | 0 | 4 | 1.000 | 1.000 | - | - |\n"), std::string::npos) << text;
  EXPECT_NE(text.find("\n| c | 0 | - | - | - | - | - |\n"), std::string::npos) << text;
}

}  // namespace
}  // namespace orthofed
