// How a run is shown while it goes on and when it is over: of `run`, `train`, `demo` and `serve`.
#pragma once
#include <memory>
#include <string>

#include "cli/terminal/site_view.h"
#include "federation/local/run_here.h"

namespace orthofed::cli {

// One progress line: over all updates of the run, or of a site alone as SiteProgress has it.
class FederationView : public RunObserver {
 public:
  // label: begins the line; empty: the method.
  FederationView(Terminal& terminal, const RunConfig& config, const std::string& label = "");

  void client_joined(const std::string& client, size_t joined, size_t expected) override;
  void client_left(const std::string& client, const std::string& why) override;
  void client_refused(const std::string& peer, const std::string& why) override;
  void round_started(int64_t round, int64_t rounds) override;
  void update_received(const ClientRound& so_far) override;
  void finished(const FederationResult& result) override;

  void measuring_machine() override;
  void base_loaded(const Vit& base) override;
  void images_skipped(const std::string& client, const std::vector<BadImage>& bad) override;
  void client_warned(const std::string& text) override;
  void nothing_profiled() override;
  void decoded(int64_t done, int64_t total) override;
  void trained(int64_t done, int64_t of_round) override;

 private:
  Terminal& terminal_;
  const bool alone_;
  std::string label_;
  SiteProgress site_;  // alone
  int64_t updates_ = 0;
  std::unique_ptr<Progress> progress_;  // of a federation
};

// The tables on standard output, or with --json the summary; nothing with --quiet.
void print_result(const RunSummary& summary, const std::string& folder,
                  const GlobalOptions& global);

}  // namespace orthofed::cli
