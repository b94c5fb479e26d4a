// What a site's scored images come to: the scores that are compared, reported and, as far as a site
// shares them, sent.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "models/scoring/metrics.h"

namespace orthofed {

// A model's answers on images: everything that a metric needs.
struct Scores {
  std::vector<int32_t> labels;       // [n]
  std::vector<float> probabilities;  // [n, classes]
  std::vector<std::string> clients;  // [n], whose image it is
};

// One evaluation of one model on one site's images. A score that is not defined is NaN.
struct SiteMetrics {
  int64_t samples = 0;
  double accuracy = 0, balanced_accuracy = 0, auroc = 0;
  std::vector<int64_t> classes_scored;  // the classes that auroc is a mean of
  Confusion confusion;
};

struct SiteEvaluation {
  SiteMetrics personal;  // with the personal adapter (what the site would use)
  SiteMetrics general;   // personal adapter off
};

SiteMetrics metrics_of(const Scores& scores, int64_t classes);

}  // namespace orthofed
