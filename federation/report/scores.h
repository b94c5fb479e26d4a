// Scores of a run over its clients. Whoever shows a mean over clients or the union of sites takes it
// from here, so that summary.json, tables and model cards cannot differ.
#pragma once
#include <optional>

#include "federation/report/summary.h"

namespace orthofed {

// A client's score with (&ClientSummary::personal) or without (&ClientSummary::general) its personal
// adapter; NaN where the client has not shared it or it is not defined.
double score_of(const ClientSummary& client, std::optional<SiteMetrics> ClientSummary::*model,
                double SiteMetrics::*score);

// The mean of that score over the clients that define it; NaN where none does.
double mean_over_clients(const RunSummary& summary,
                         std::optional<SiteMetrics> ClientSummary::*model,
                         double SiteMetrics::*score);

// Scores of the union of all sites' images with their personal adapters, intervals drawn from the
// run's seed; absent unless every client shared its confusion matrix.
std::optional<UnionScores> union_of_sites(const RunSummary& summary);

}  // namespace orthofed
