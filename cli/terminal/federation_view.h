// How a federation is shown while it runs and reported when it is over; shared by `run` and
// `serve`.
#pragma once
#include <memory>
#include <string>

#include "cli/session.h"
#include "cli/terminal/time_table.h"
#include "federation/report/summary.h"
#include "federation/server/server.h"

namespace orthofed::cli {

// Progress line over all updates of the run, and metrics.jsonl as rounds complete.
class FederationView : public ServerObserver {
 public:
  FederationView(Terminal& terminal, const RunConfig& config, const std::string& folder,
                 const std::string& label = "");

  void client_joined(const std::string& client, size_t joined, size_t expected) override;
  void client_left(const std::string& client, const std::string& why) override;
  void client_refused(const std::string& peer, const std::string& why) override;
  void round_started(int64_t round, int64_t rounds) override;
  void update_received(const ClientRound& so_far) override;
  void client_round(const ClientRound& complete) override;
  void finished(const FederationResult& result) override;

 private:
  Terminal& terminal_;
  MetricsLog log_;
  std::string label_;
  int64_t updates_ = 0;
  std::unique_ptr<Progress> progress_;
};

// Writes summary.json and general_adapter.safetensors into the folder and prints the tables, or
// with --json the summary.
void report(const RunConfig& config, const Agreement& agreement, const FederationResult& result,
            const std::string& folder, const GlobalOptions& global);

// The table alone: a line a client, their mean, and the union of sites.
std::string result_table(const RunSummary& summary);
// A line a client that shares its time, and the server; or the one process there was.
std::vector<TimeRow> time_rows(const RunSummary& summary);
RunSummary summary_of(const RunConfig& config, const Agreement& agreement,
                      const FederationResult& result);

}  // namespace orthofed::cli
