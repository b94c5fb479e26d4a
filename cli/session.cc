#include "cli/session.h"

#include <fmt/core.h>

#include <cmath>
#include <filesystem>

#include "cli/config.h"
#include "cli/table.h"
#include "engine/io/files.h"
#include "kernels/core/parallel.h"
#include "kernels/matmul/matmul.h"
#include "models/metrics.h"
#include "models/site_data.h"

namespace orthofed::cli {

RunConfig open_config(const std::string& file, const std::vector<std::string>& set,
                      Terminal& terminal) {
  std::vector<std::string> notes;
  const RunConfig config = completed(load_config(file, set, &notes));
  for (const std::string& note : notes) terminal.message(note);
  if (config.precision == "auto" && !cpu::native_bf16())
    terminal.warning("this processor does not multiply bf16 natively: computing in fp32");
  cpu::set_threads(int(config.threads));
  return config;
}

void open_output(const std::string& folder, const std::string& marker) {
  if (std::filesystem::exists(std::filesystem::path(folder) / marker))
    throw UserError(
        fmt::format("{}: holds the results of a run already ({}); name another folder or "
                    "remove it",
                    folder, marker));
  make_directories(folder);
}

SiteProgress::SiteProgress(Terminal& terminal, std::string who)
    : terminal_(terminal), who_(std::move(who)) {}

void SiteProgress::show(const std::string& what, int64_t done, int64_t total,
                        const std::string& unit) {
  if (current_ != what) {
    this->done();
    progress_ = std::make_unique<Progress>(terminal_, who_.empty() ? what : who_ + ": " + what,
                                           total, unit);
    current_ = what;
    shown_ = 0;
  }
  progress_->advance(done - shown_);
  shown_ = done;
}

SiteTrainer::Callbacks SiteProgress::callbacks() {
  return {
      .decoding = [this](int64_t done, int64_t total) { show("decoding", done, total, "images"); },
      .step = [this](int64_t done, int64_t total, double) { show(label_, done, total, "images"); }};
}

void SiteProgress::round(int64_t round, int64_t rounds) {
  label_ = fmt::format("round {}/{}", round + 1, rounds);
}

void SiteProgress::done() {
  if (progress_) progress_->finish();
  progress_.reset();
  current_.clear();
}

std::string score(double value) {
  if (!std::isfinite(value)) return "-";
  const std::string text = fmt::format("{:.3f}", value);
  return text.starts_with("0.") ? text.substr(1) : text;
}

std::string json_number(double value) {
  return std::isfinite(value) ? fmt::format("{:.17g}", value) : "null";
}

std::string confusion_table(const std::vector<std::vector<int64_t>>& confusion,
                            const std::vector<std::string>& classes) {
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

}  // namespace orthofed::cli
