// The files that a run leaves in its folder: metrics.jsonl grows with every round; when the run is
// over, general_adapter.safetensors and summary.json are written.
#pragma once
#include <string>

#include "federation/report/summary.h"

namespace orthofed {

// Writes FOLDER/general_adapter.safetensors, if there is a general adapter, and FOLDER/summary.json.
// config: of the run, device and precision as used. UserError where a file cannot be written.
RunSummary write_results(const RunConfig& config, const Agreement& agreement,
                         const FederationResult& result, const std::string& folder);

// Writes those files as things happen, and hands every call on to `next`. The results are on disk
// before the clients are told that the run is over: if they cannot be written, the run has failed,
// and everybody hears so.
class Recorder : public ServerObserver {
 public:
  // The arguments outlive this.
  Recorder(const RunConfig& config, const Agreement& agreement, const std::string& folder,
           ServerObserver& next);

  void client_joined(const std::string& client, size_t joined, size_t expected) override;
  void client_left(const std::string& client, const std::string& why) override;
  void client_refused(const std::string& peer, const std::string& why) override;
  void round_started(int64_t round, int64_t rounds) override;
  void update_received(const ClientRound& so_far) override;
  void round_aggregated(int64_t round, const TensorMap& general) override;
  void metrics_received(const std::string& client, int64_t rounds_done,
                        const std::optional<SiteEvaluation>& evaluation) override;
  void client_round(const ClientRound& complete) override;
  void finished(const FederationResult& result) override;

  const RunSummary& summary() const { return summary_; }  // after finished()

 private:
  const RunConfig& config_;
  const Agreement& agreement_;
  const std::string folder_;
  ServerObserver& next_;
  MetricsLog log_;
  RunSummary summary_;
};

}  // namespace orthofed
