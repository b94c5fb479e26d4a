#include "federation/report/scores.h"

#include <limits>

namespace orthofed {

double score_of(const ClientSummary& client, std::optional<SiteMetrics> ClientSummary::*model,
                double SiteMetrics::*score) {
  const std::optional<SiteMetrics>& m = client.*model;
  return m ? (*m).*score : std::numeric_limits<double>::quiet_NaN();
}

double mean_over_clients(const RunSummary& summary,
                         std::optional<SiteMetrics> ClientSummary::*model,
                         double SiteMetrics::*score) {
  std::vector<double> values;
  for (const ClientSummary& client : summary.clients)
    values.push_back(score_of(client, model, score));
  return mean_of_defined(values);
}

std::optional<UnionScores> union_of_sites(const RunSummary& summary) {
  std::vector<Confusion> sites;
  for (const ClientSummary& client : summary.clients) {
    if (!client.personal || client.personal->confusion.empty()) return std::nullopt;
    sites.push_back(client.personal->confusion);
  }
  if (sites.empty()) return std::nullopt;
  return union_scores(sites, summary.seed);
}

}  // namespace orthofed
