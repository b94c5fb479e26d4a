#include "cli/terminal/federation_view.h"

#include <fmt/core.h>

#include <cmath>
#include <iostream>

#include "cli/terminal/score_table.h"
#include "cli/terminal/time_table.h"
#include "cli/terminal/units.h"

namespace orthofed::cli {

FederationView::FederationView(Terminal& terminal, const RunConfig& config,
                               const std::string& label)
    : terminal_(terminal),
      alone_(trains_alone(config)),
      label_(label.empty() ? config.method : label),
      site_(terminal, label_),
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
  if (alone_) return site_.round(round, rounds);
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

void FederationView::finished(const FederationResult&) {
  site_.done();
  if (progress_) {
    progress_->set_label(label_);
    progress_->finish();
  }
  progress_.reset();
}

void FederationView::measuring_machine() {
  terminal_.message("measuring what this machine can do at best");
}

void FederationView::base_loaded(const Vit& base) {
  say_left_aside(terminal_, base);
}

void FederationView::images_skipped(const std::string& client, const std::vector<BadImage>& bad) {
  warn_skipped(terminal_, bad, alone_ ? label_ : client);
}

void FederationView::client_warned(const std::string& text) {
  terminal_.warning(text);
}

void FederationView::nothing_profiled() {
  warn_nothing_profiled(terminal_);
}

void FederationView::decoded(int64_t done, int64_t total) {
  site_.decoded(done, total);
}

void FederationView::trained(int64_t done, int64_t of_round) {
  site_.trained(done, of_round);
}

void print_result(const RunSummary& summary, const std::string& folder,
                  const GlobalOptions& global) {
  if (global.json)
    std::cout << to_json(summary);
  else if (!global.quiet)
    std::cout << fmt::format("\n{}, {} rounds, {}\n\n{}\n{}results in {}\n", summary.method,
                             summary.rounds, format_duration(summary.wall_seconds),
                             result_table(summary), time_table(time_rows(summary)), folder);
}

}  // namespace orthofed::cli
