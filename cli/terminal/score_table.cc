#include "cli/terminal/score_table.h"

#include <fmt/core.h>

#include <cmath>

#include "cli/terminal/table.h"
#include "cli/terminal/units.h"
#include "federation/report/scores.h"

namespace orthofed::cli {

std::string score(double value) {
  if (!std::isfinite(value)) return "-";
  const std::string text = fmt::format("{:.3f}", value);
  return text.starts_with("0.") ? text.substr(1) : text;
}

std::string confusion_table(const Confusion& confusion, const std::vector<std::string>& classes) {
  std::vector<std::string> header = {"true \\ predicted"};
  header.insert(header.end(), classes.begin(), classes.end());
  header.push_back("recall");
  Table table(header);
  const std::vector<double> recall = recall_per_class(confusion);
  for (size_t i = 0; i < confusion.size(); ++i) {
    std::vector<std::string> row = {classes[i]};
    for (int64_t n : confusion[i]) row.push_back(std::to_string(n));
    row.push_back(score(recall[i]));
    table.add_row(row);
  }
  return table.text();
}

std::string score_table(const std::vector<ScoreRow>& rows) {
  Table table({"site", "train", "scored", "accuracy", "balanced", "AUROC"});
  for (const ScoreRow& r : rows)
    table.add_row({r.name, r.train > 0 ? std::to_string(r.train) : "",
                   std::to_string(r.metrics.samples), score(r.metrics.accuracy),
                   score(r.metrics.balanced_accuracy), score(r.metrics.auroc)});
  return table.text();
}

std::string result_table(const RunSummary& summary) {
  constexpr auto personal = &ClientSummary::personal, general = &ClientSummary::general;
  constexpr auto balanced = &SiteMetrics::balanced_accuracy, accuracy = &SiteMetrics::accuracy,
                 auroc = &SiteMetrics::auroc;
  Table table(
      {"client", "train", "test", "balanced", "general", "accuracy", "AUROC", "sent/round"});
  bool any = false;
  for (const ClientSummary& c : summary.clients) {
    const auto cell = [&](auto model, auto which) { return score(score_of(c, model, which)); };
    table.add_row(
        {c.name, std::to_string(c.train), std::to_string(c.personal ? c.personal->samples : 0),
         cell(personal, balanced), cell(general, balanced), cell(personal, accuracy),
         cell(personal, auroc),
         c.bytes_sent > 0 ? format_bytes(double(c.bytes_sent) / double(summary.rounds)) : "-"});
    any = any || c.personal;
  }
  if (any) {
    const auto mean = [&](auto model, auto which) {
      return score(mean_over_clients(summary, model, which));
    };
    table.add_rule();
    table.add_row({"mean", "", "", mean(personal, balanced), mean(general, balanced),
                   mean(personal, accuracy), mean(personal, auroc), ""});
  }
  std::string text = table.text();
  if (const std::optional<UnionScores> u = union_of_sites(summary))
    text += fmt::format("union of sites: balanced accuracy {} [{}, {}]\n",
                        score(u->balanced_accuracy.value), score(u->balanced_accuracy.low),
                        score(u->balanced_accuracy.high));
  return text;
}

}  // namespace orthofed::cli
