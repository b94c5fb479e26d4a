// What every command that trains or scores does around the work: configuration, thread count, what
// precision means here, and numbers as people read them.
#pragma once
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/terminal/terminal.h"
#include "models/config/config.h"
#include "models/training/site_trainer.h"

namespace orthofed::cli {

// Loads and completes the configuration, says what was set aside, replaces `precision = auto` by
// what it means here (with a warning where that is not bf16), and sets this process's threads.
RunConfig open_config(const std::string& file, const std::vector<std::string>& set,
                      Terminal& terminal);

// Throws UserError where `marker` is in the folder: a run never overwrites another.
void refuse_results(const std::string& folder, const std::string& marker);

// The folder for results. It is made if it is not there, and goes again with what is in it if the
// command ends, by bad input for example, before there is a result or the line of a first round in
// metrics.jsonl. A folder that was there stays. Files that a killed client had not finished
// writing are removed.
class OutputFolder {
 public:
  // Throws as refuse_results.
  OutputFolder(const std::string& folder, const std::string& marker);
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

 private:
  std::string folder_, marker_;
  bool made_here_ = false;
};

// Callbacks that drive one progress line: decoding first, then the images of each round.
class SiteProgress {
 public:
  SiteProgress(Terminal& terminal, std::string who);
  SiteTrainer::Callbacks callbacks();
  void round(int64_t round, int64_t rounds);  // the label of what follows
  void done();                                // leaves the line

 private:
  void show(const std::string& what, int64_t done, int64_t total, const std::string& unit);

  Terminal& terminal_;
  std::string who_, label_, current_;
  std::unique_ptr<Progress> progress_;
  int64_t shown_ = 0;
};

// The tensors of the base's file that the model has no use for, in one line.
void say_left_aside(Terminal& terminal, const Vit& base);

// One line an image that could not be read, the first few by name.
void warn_skipped(Terminal& terminal, const std::vector<BadImage>& bad, const std::string& who);

std::string score(double value);  // ".917", "1.000"; "-" where it is not defined

// True classes down, predicted classes across, recall at the end.
std::string confusion_table(const std::vector<std::vector<int64_t>>& confusion,
                            const std::vector<std::string>& classes);

// One line a client: n, accuracy, balanced accuracy, AUROC.
struct ScoreRow {
  std::string name;
  int64_t train = 0;
  SiteMetrics metrics;
};
std::string score_table(const std::vector<ScoreRow>& rows);

}  // namespace orthofed::cli
