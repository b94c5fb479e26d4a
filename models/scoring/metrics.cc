#include "models/scoring/metrics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/core/check.h"
#include "kernels/core/philox.h"

namespace orthofed {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

int64_t count_of(const std::vector<int64_t>& row) {
  return std::accumulate(row.begin(), row.end(), int64_t{0});
}

// The q-quantile of sorted values, interpolated linearly (numpy's default).
double quantile(const std::vector<double>& sorted, double q) {
  const double at = q * double(sorted.size() - 1);
  const auto below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (at - double(below)) * (sorted[above] - sorted[below]);
}

Interval interval_of(double value, std::vector<double> resampled) {
  if (std::isnan(value) || resampled.empty()) return {value, nan, nan};
  std::sort(resampled.begin(), resampled.end());
  return {value, quantile(resampled, 0.025), quantile(resampled, 0.975)};
}

// Binomial(n, hits / n) by n draws with replacement, four to a Philox block.
int64_t redraw(int64_t n, int64_t hits, const Philox& rng, uint64_t resample) {
  int64_t redrawn = 0;
  std::array<uint32_t, 4> block{};
  for (int64_t draw = 0; draw < n; ++draw) {
    if (draw % 4 == 0) block = rng(static_cast<uint64_t>(draw / 4), resample);
    const uint64_t sample = (uint64_t{block[draw % 4]} * static_cast<uint64_t>(n)) >> 32;  // [0, n)
    redrawn += sample < static_cast<uint64_t>(hits);
  }
  return redrawn;
}

}  // namespace

double mean_of_defined(const std::vector<double>& values) {
  double sum = 0;
  int64_t defined = 0;
  for (double value : values)
    if (!std::isnan(value)) sum += value, ++defined;
  return defined == 0 ? nan : sum / double(defined);
}

Confusion confusion_matrix(const std::vector<int32_t>& labels,
                           const std::vector<int32_t>& predictions, int64_t classes) {
  OF_CHECK(labels.size() == predictions.size(), "labels and predictions differ in number");
  Confusion confusion(classes, std::vector<int64_t>(classes, 0));
  for (size_t i = 0; i < labels.size(); ++i) {
    OF_CHECK(0 <= labels[i] && labels[i] < classes, "a label outside the classes");
    OF_CHECK(0 <= predictions[i] && predictions[i] < classes, "a prediction outside the classes");
    ++confusion[labels[i]][predictions[i]];
  }
  return confusion;
}

std::vector<int32_t> predicted_classes(const std::vector<float>& scores, int64_t classes) {
  OF_CHECK(classes > 0 && scores.size() % classes == 0, "scores are not [n, classes]");
  std::vector<int32_t> predictions;
  for (auto row = scores.begin(); row != scores.end(); row += classes)
    predictions.push_back(static_cast<int32_t>(std::max_element(row, row + classes) - row));
  return predictions;
}

Confusion sum_of(const std::vector<Confusion>& sites) {
  if (sites.empty()) return {};
  Confusion total = sites[0];
  for (size_t s = 1; s < sites.size(); ++s) {
    OF_CHECK(sites[s].size() == total.size(), "confusion matrices differ in size");
    for (size_t i = 0; i < total.size(); ++i) {
      OF_CHECK(sites[s][i].size() == total[i].size(), "confusion matrices differ in size");
      for (size_t j = 0; j < total[i].size(); ++j) total[i][j] += sites[s][i][j];
    }
  }
  return total;
}

double accuracy(const Confusion& confusion) {
  int64_t hits = 0, samples = 0;
  for (size_t c = 0; c < confusion.size(); ++c) {
    hits += confusion[c][c];
    samples += count_of(confusion[c]);
  }
  return samples == 0 ? nan : double(hits) / double(samples);
}

std::vector<double> recall_per_class(const Confusion& confusion) {
  std::vector<double> recall;
  for (size_t c = 0; c < confusion.size(); ++c) {
    const int64_t samples = count_of(confusion[c]);
    recall.push_back(samples == 0 ? nan : double(confusion[c][c]) / double(samples));
  }
  return recall;
}

double balanced_accuracy(const Confusion& confusion) {
  return mean_of_defined(recall_per_class(confusion));
}

Auroc auroc(const std::vector<float>& scores, const std::vector<int32_t>& labels, int64_t classes) {
  OF_CHECK(classes > 0 && scores.size() == labels.size() * classes, "scores are not [n, classes]");
  for (int32_t label : labels)
    OF_CHECK(0 <= label && label < classes, "a label outside the classes");
  for (float score : scores)
    if (std::isnan(score)) throw Error("AUROC: a score is not a number");

  Auroc result;
  std::vector<size_t> order(labels.size());
  for (int64_t c = 0; c < classes; ++c) {
    const auto score = [&](size_t i) { return scores[i * classes + c]; };
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t i, size_t j) { return score(i) < score(j); });
    // Walking up the scores, tie by tie: a positive wins over every negative below it and half of
    // those that are level with it. Twice the wins is an integer.
    int64_t positives = 0, negatives = 0, twice_wins = 0;
    for (size_t i = 0; i < order.size();) {
      int64_t positives_here = 0, negatives_here = 0;
      const float level = score(order[i]);
      for (; i < order.size() && score(order[i]) == level; ++i)
        ++(labels[order[i]] == c ? positives_here : negatives_here);
      twice_wins += positives_here * (2 * negatives + negatives_here);
      positives += positives_here;
      negatives += negatives_here;
    }
    const bool scored = positives > 0 && negatives > 0;
    if (scored) result.classes_scored.push_back(c);
    result.per_class.push_back(
        scored ? double(twice_wins) / (2.0 * double(positives) * double(negatives)) : nan);
  }
  result.macro = mean_of_defined(result.per_class);
  return result;
}

UnionScores union_scores(const std::vector<Confusion>& sites, uint64_t seed, int64_t resamples) {
  const Confusion total = sum_of(sites);
  const size_t classes = total.size();
  std::vector<double> accuracies, balanced;
  for (int64_t resample = 0; resample < resamples; ++resample) {
    std::vector<int64_t> hits(classes, 0), samples(classes, 0);
    for (size_t s = 0; s < sites.size(); ++s)
      for (size_t c = 0; c < classes; ++c) {
        const Philox rng = PhiloxKey(seed).with("bootstrap").with(uint64_t{s}).with(uint64_t{c});
        const int64_t n = count_of(sites[s][c]);
        samples[c] += n;
        hits[c] += redraw(n, sites[s][c][c], rng, static_cast<uint64_t>(resample));
      }
    int64_t all_hits = 0, all_samples = 0;
    std::vector<double> recall;
    for (size_t c = 0; c < classes; ++c) {
      all_hits += hits[c];
      all_samples += samples[c];
      recall.push_back(samples[c] == 0 ? nan : double(hits[c]) / double(samples[c]));
    }
    accuracies.push_back(double(all_hits) / double(all_samples));
    balanced.push_back(mean_of_defined(recall));
  }
  return {interval_of(accuracy(total), std::move(accuracies)),
          interval_of(balanced_accuracy(total), std::move(balanced))};
}

}  // namespace orthofed
