#include "cli/session.h"

#include <fmt/ranges.h>

#include <cmath>
#include <filesystem>
#include <regex>

#include "cli/terminal/table.h"
#include "engine/io/files.h"
#include "engine/io/text.h"
#include "kernels/core/parallel.h"
#include "models/config/toml.h"
#include "models/methods/method.h"
#include "models/scoring/metrics.h"
#include "models/training/site_data.h"

namespace orthofed::cli {

namespace fs = std::filesystem;

RunConfig open_config(const std::string& file, const std::vector<std::string>& set,
                      Terminal& terminal) {
  std::vector<std::string> notes;
  RunConfig config = completed(load_config(file, set, &notes));
  for (const std::string& note : notes) terminal.message(note);
  const Device device = device_of(config.device);
  if (config.precision == Precision::automatic && device == Device::cpu && !cpu::native_bf16())
    terminal.warning("this processor does not multiply bf16 natively: computing in fp32");
  config.device = value_of<DeviceChoice>(name_of(device)).value();
  config.precision = value_of<Precision>(name_of(compute_type(config.precision, device))).value();
  cpu::set_threads(int(config.threads));
  return config;
}

// What engine/io/files.h's AtomicFile leaves where its process is killed: PATH.PID-N.tmp.
static void remove_half_written(const std::string& folder) {
  static const std::regex temporary(R"(\.[0-9]+-[0-9]+\.tmp$)");
  std::vector<fs::path> found;
  std::error_code ignored;
  for (const auto& entry : fs::recursive_directory_iterator(folder, ignored))
    if (std::regex_search(entry.path().filename().string(), temporary))
      found.push_back(entry.path());
  for (const fs::path& path : found) fs::remove(path, ignored);
}

void refuse_results(const std::string& folder, const std::string& marker) {
  if (fs::exists(folder + "/" + marker))
    throw UserError(
        fmt::format("{}: holds the results of a run already ({}); name another folder or "
                    "remove it",
                    folder, marker));
}

OutputFolder::OutputFolder(const std::string& folder, const std::string& marker)
    : folder_(folder), marker_(folder + "/" + marker), made_here_(!fs::exists(folder)) {
  refuse_results(folder, marker);
  make_directories(folder);
  remove_half_written(folder);
}

OutputFolder::~OutputFolder() {
  std::error_code ignored;
  remove_half_written(folder_);
  const std::string metrics = folder_ + "/metrics.jsonl";
  const bool trained = fs::exists(metrics, ignored) && fs::file_size(metrics, ignored) > 0;
  if (made_here_ && !trained && !fs::exists(marker_, ignored)) fs::remove_all(folder_, ignored);
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
      .skipped = [this](const std::vector<BadImage>& bad) { warn_skipped(terminal_, bad, who_); },
      .step = [this](int64_t done, int64_t total, double) { show(label_, done, total, "images"); },
      .profile = nullptr};
}

void SiteProgress::round(int64_t round, int64_t rounds) {
  label_ = fmt::format("round {}/{}", round + 1, rounds);
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

std::string score(double value) {
  if (!std::isfinite(value)) return "-";
  const std::string text = fmt::format("{:.3f}", value);
  return text.starts_with("0.") ? text.substr(1) : text;
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
