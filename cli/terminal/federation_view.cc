#include "cli/terminal/federation_view.h"

#include <fmt/core.h>

#include <cmath>
#include <filesystem>
#include <iostream>

#include "cli/terminal/table.h"
#include "cli/terminal/units.h"
#include "federation/report/scores.h"
#include "models/methods/method.h"

namespace orthofed::cli {

FederationView::FederationView(Terminal& terminal, const RunConfig& config,
                               const std::string& folder, const std::string& label)
    : terminal_(terminal),
      log_(folder + "/metrics.jsonl"),
      label_(label.empty() ? config.method : label),
      updates_(config.rounds * int64_t(config.federation.clients.size())) {}

void FederationView::client_joined(const std::string& client, size_t joined, size_t expected) {
  terminal_.message(fmt::format("{}: {} joined ({} of {})", label_, client, joined, expected));
}

void FederationView::client_left(const std::string& client, const std::string& why) {
  terminal_.warning(fmt::format("{} left: {}", client, why));
}

void FederationView::client_refused(const std::string& peer, const std::string& why) {
  terminal_.warning(fmt::format("{} refused: {}", peer, why));
}

void FederationView::round_started(int64_t round, int64_t rounds) {
  if (!progress_) progress_ = std::make_unique<Progress>(terminal_, label_, updates_, "updates");
  progress_->set_label(fmt::format("{} round {}/{}", label_, round + 1, rounds));
}

void FederationView::update_received(const ClientRound& update) {
  std::string speed;
  if (update.report && std::isfinite(update.report->images_per_second))
    speed = fmt::format(", {} at {} images/s", update.client,
                        format_rate(update.report->images_per_second));
  progress_->advance();
  progress_->set_label(fmt::format("{} round {}{}", label_, update.round + 1, speed));
}

void FederationView::client_round(const ClientRound& complete) {
  log_.write(complete);
}

void FederationView::finished(const FederationResult&) {
  if (progress_) {
    progress_->set_label(label_);
    progress_->finish();
  }
  progress_.reset();
}

// Of a configuration that open_config() has completed: device and precision are those in use.
RunSummary summary_of(const RunConfig& config, const Agreement& agreement,
                      const FederationResult& result) {
  const bool fp8 = config.train.frozen_precision == FrozenPrecision::fp8;
  return summarize(config, agreement, result,
                   std::filesystem::path(config.model.weights).filename().string(),
                   word(config.device),
                   std::string(word(config.precision)) + (fp8 ? ", frozen weights fp8" : ""));
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

std::vector<TimeRow> time_rows(const RunSummary& summary) {
  std::vector<TimeRow> rows;
  bool alone = true;
  for (const ClientSummary& c : summary.clients) {
    if (c.time) rows.push_back({c.name, *c.time});
    alone = alone && c.bytes_sent == 0;
  }
  rows.push_back({alone ? "this run" : "server", summary.time});
  return rows;
}

void report(const RunConfig& config, const Agreement& agreement, const FederationResult& result,
            const std::string& folder, const GlobalOptions& global) {
  if (!result.general.empty())
    save_adapter(folder + "/general_adapter.safetensors",
                 {AdapterKind::general, adapter_scale(config.lora, AdapterKind::general).scale(),
                  config.data.classes, agreement.base_sha256, config.method, config.rounds,
                  result.general, preprocessing_of(config.data)});
  const RunSummary summary = summary_of(config, agreement, result);
  write_summary(folder + "/summary.json", summary);
  if (global.json) {
    std::cout << to_json(summary);
  } else if (!global.quiet) {
    std::cout << fmt::format("\n{}, {} rounds, {}\n\n{}\n{}results in {}\n", config.method,
                             config.rounds, format_duration(result.wall_seconds),
                             result_table(summary), time_table(time_rows(summary)), folder);
  }
}

}  // namespace orthofed::cli
