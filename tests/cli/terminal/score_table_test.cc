#include "cli/terminal/score_table.h"

#include <gtest/gtest.h>

#include <limits>

namespace orthofed::cli {
namespace {

// A site with images of one class has no area under a curve: the mean is the other sites', as in
// summary.json. Who shares nothing takes part in no mean.
TEST(ResultTable, MeansAreThoseOfTheSummary) {
  RunSummary summary;
  summary.rounds = 2;
  for (const char* name : {"a", "b", "c"}) summary.clients.emplace_back().name = name;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto metrics = [](double score, double auroc) {
    return SiteMetrics{.samples = 10,
                       .accuracy = score,
                       .balanced_accuracy = score,
                       .auroc = auroc,
                       .classes_scored = {},
                       .confusion = {}};
  };
  summary.clients[0].personal = metrics(0.5, 0.963);
  summary.clients[0].general = metrics(0.25, nan);
  summary.clients[1].personal = metrics(1, nan);
  EXPECT_EQ(result_table(summary),
            "client  train  test  balanced  general  accuracy  AUROC  sent/round\n"
            "------  -----  ----  --------  -------  --------  -----  ----------\n"
            "a           0    10      .500     .250      .500   .963           -\n"
            "b           0    10     1.000        -     1.000      -           -\n"
            "c           0     0         -        -         -      -           -\n"
            "------  -----  ----  --------  -------  --------  -----  ----------\n"
            "mean                     .750     .250      .750   .963\n");
}

}  // namespace
}  // namespace orthofed::cli
