// Scores as people read them.
#pragma once
#include <string>
#include <vector>

#include "federation/report/summary.h"

namespace orthofed::cli {

std::string score(double value);  // ".917", "1.000"; "-" where it is not defined

// True classes down, predicted classes across, recall at the end.
std::string confusion_table(const Confusion& confusion, const std::vector<std::string>& classes);

// One line per model and site: how many images it was trained and scored on, and its scores.
struct ScoreRow {
  std::string name;
  int64_t train = 0;  // 0: not said
  SiteMetrics metrics;
};
std::string score_table(const std::vector<ScoreRow>& rows);

// A run's result: one line per client, their mean, and the union of sites.
std::string result_table(const RunSummary& summary);

}  // namespace orthofed::cli
