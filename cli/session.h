// What every command that trains or scores does around the work: it opens the configuration and the
// folder for results.
#pragma once
#include <string>
#include <vector>

#include "cli/terminal/terminal.h"
#include "models/config/config.h"

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

}  // namespace orthofed::cli
