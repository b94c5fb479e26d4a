// How one site's work is shown: a progress line, and what a person should know about its images, its
// base model and its profile.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "cli/terminal/terminal.h"
#include "models/training/site_trainer.h"

namespace orthofed::cli {

// One progress line: decoding first, then the images of each round.
class SiteProgress {
 public:
  SiteProgress(Terminal& terminal, std::string who);
  SiteTrainer::Callbacks callbacks();  // that call what follows and warn_skipped
  void decoded(int64_t done, int64_t total);
  void round(int64_t round, int64_t rounds);  // the label of what is trained from here on
  void trained(int64_t done, int64_t of_round);
  void done();  // leaves the line

 private:
  void show(const std::string& what, int64_t done, int64_t total);

  Terminal& terminal_;
  std::string who_, label_, current_;
  std::unique_ptr<Progress> progress_;
  int64_t shown_ = 0;
};

// The tensors of the base's file that the model has no use for, in one line.
void say_left_aside(Terminal& terminal, const Vit& base);

// One line per image that could not be read, the first few by name.
void warn_skipped(Terminal& terminal, const std::vector<BadImage>& bad, const std::string& who);

void warn_nothing_profiled(Terminal& terminal);
// On standard output, with a blank line below; neither with --quiet nor with --json.
void print_profile(const std::string& table, const GlobalOptions& global);

}  // namespace orthofed::cli
