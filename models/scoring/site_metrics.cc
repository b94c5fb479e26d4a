#include "models/scoring/site_metrics.h"

namespace orthofed {

SiteMetrics metrics_of(const Scores& scores, int64_t classes) {
  SiteMetrics m;
  m.samples = int64_t(scores.labels.size());
  m.confusion =
      confusion_matrix(scores.labels, predicted_classes(scores.probabilities, classes), classes);
  m.accuracy = accuracy(m.confusion);
  m.balanced_accuracy = balanced_accuracy(m.confusion);
  const Auroc area = auroc(scores.probabilities, scores.labels, classes);
  m.auroc = area.macro;
  m.classes_scored = area.classes_scored;
  return m;
}

}  // namespace orthofed
