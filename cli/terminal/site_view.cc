#include "cli/terminal/site_view.h"

#include <fmt/core.h>

#include "engine/tensor/profile.h"

namespace orthofed::cli {

SiteProgress::SiteProgress(Terminal& terminal, std::string who)
    : terminal_(terminal), who_(std::move(who)) {}

void SiteProgress::show(const std::string& what, int64_t done, int64_t total) {
  if (current_ != what) {
    this->done();
    progress_ = std::make_unique<Progress>(terminal_, who_.empty() ? what : who_ + ": " + what,
                                           total, "images");
    current_ = what;
    shown_ = 0;
  }
  progress_->advance(done - shown_);
  shown_ = done;
}

SiteTrainer::Callbacks SiteProgress::callbacks() {
  return {
      .decoding = [this](int64_t done, int64_t total) { decoded(done, total); },
      .skipped = [this](const std::vector<BadImage>& bad) { warn_skipped(terminal_, bad, who_); },
      .step = [this](int64_t done, int64_t total, double) { trained(done, total); },
      .profile = nullptr};
}

void SiteProgress::decoded(int64_t done, int64_t total) {
  show("decoding", done, total);
}

void SiteProgress::round(int64_t round, int64_t rounds) {
  label_ = fmt::format("round {}/{}", round + 1, rounds);
}

void SiteProgress::trained(int64_t done, int64_t of_round) {
  show(label_, done, of_round);
}

void SiteProgress::done() {
  if (progress_) progress_->finish();
  progress_.reset();
  current_.clear();
}

void say_left_aside(Terminal& terminal, const Vit& base) {
  if (!base.unused.empty()) terminal.message("the base model's file, " + left_aside(base.unused));
}

void warn_skipped(Terminal& terminal, const std::vector<BadImage>& bad, const std::string& who) {
  constexpr size_t kNamed = 8;
  const std::string prefix = who.empty() ? "" : who + ": ";
  for (size_t i = 0; i < bad.size() && i < kNamed; ++i)
    terminal.warning(fmt::format("{}skipped {}", prefix, bad[i].reason));
  if (bad.size() > kNamed)
    terminal.warning(fmt::format("{}{} more images skipped; `orthofed check --json` names all",
                                 prefix, bad.size() - kNamed));
}

void warn_nothing_profiled(Terminal& terminal) {
  terminal.warning(
      fmt::format("--profile: nothing was measured, the run has no more than the {} "
                  "steps that warm up; raise rounds or train.epochs",
                  Profile::kWarmUp));
}

void print_profile(const std::string& table, const GlobalOptions& global) {
  if (!table.empty() && !global.quiet && !global.json) fmt::print("{}\n", table);
}

}  // namespace orthofed::cli
