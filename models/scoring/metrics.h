// How well predictions agree with labels, for one site and over the union of sites.
//
// Clinical sets are unbalanced and small, so the scores are per class first: the recall of every
// class, their mean (balanced accuracy, as scikit-learn's balanced_accuracy_score), and the area
// under the ROC curve of each class against the rest. A class without samples is not scored, and
// the classes that are scored are listed.
#pragma once
#include <cstdint>
#include <vector>

namespace orthofed {

using Confusion = std::vector<std::vector<int64_t>>;  // [true class][predicted class]

// The mean of the values that are defined (not NaN); NaN where none is.
double mean_of_defined(const std::vector<double>& values);

// Labels and predictions [n], each in [0, classes).
Confusion confusion_matrix(const std::vector<int32_t>& labels,
                           const std::vector<int32_t>& predictions, int64_t classes);
// Predictions as the class of the largest score, the first one of equals. scores [n, classes].
std::vector<int32_t> predicted_classes(const std::vector<float>& scores, int64_t classes);
// Sum over sites: the confusion matrix of their union. All of one size.
Confusion sum_of(const std::vector<Confusion>& sites);

double accuracy(const Confusion& confusion);  // NaN where there is no sample
// Share of a class's samples that are found; NaN for a class without samples.
std::vector<double> recall_per_class(const Confusion& confusion);
// Mean recall over the classes that have samples; NaN where none has.
double balanced_accuracy(const Confusion& confusion);

struct Auroc {
  double macro = 0;                     // mean over classes_scored; NaN where there is none
  std::vector<double> per_class;        // NaN where not scored
  std::vector<int64_t> classes_scored;  // classes with both positives and negatives
};
// One class against the rest: the probability that a positive scores above a negative, ties
// counting half (Mann-Whitney U). scores [n, classes]: probabilities or anything that orders
// samples alike within a class; NaN is an Error. O(classes n log n).
Auroc auroc(const std::vector<float>& scores, const std::vector<int32_t>& labels, int64_t classes);

struct Interval {
  double value = 0, low = 0, high = 0;
};
struct UnionScores {
  Interval accuracy, balanced_accuracy;
};
// Scores of the union of sites with 95 % percentile bootstrap intervals (Efron), stratified by site
// and class: each resample redraws, for every site and true class, as many samples as it has. Both
// scores depend on the hits alone, and the hits of a redrawn row of n samples of which h were hits
// are Binomial(n, h/n), so confusion matrices suffice and no predictions leave a site. Every number
// is a function of (seed, site, class, resample, draw).
UnionScores union_scores(const std::vector<Confusion>& sites, uint64_t seed = 0,
                         int64_t resamples = 2000);

}  // namespace orthofed
