// What a run leaves behind in DIR: summary.json, metrics.jsonl and general_adapter.safetensors.
// Undefined numbers (no site shared them, no class could be scored) are null.
#pragma once
#include <cstdint>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "federation/server/server.h"

namespace orthofed {

// One client's line of summary.json. Scores are of theta^T with the client's own personal adapter:
// always after the last aggregation.
struct ClientSummary {
  std::string name;
  int64_t train = 0;                    // training images per round (n_i)
  std::optional<SiteMetrics> personal;  // absent: not shared
  std::optional<SiteMetrics> general;   // the personal adapter off; absent: or the method has none
  int64_t bytes_sent = 0, bytes_received = 0;  // by the client
  double train_images_per_second = 0;          // NaN: not shared
  std::optional<TimeSplit> time = {};  // from its start to its last scores; absent: not shared
};

struct RunSummary {
  std::string method;
  int64_t rounds = 0;
  uint64_t seed = 0;
  std::string device, precision;  // as used, not "auto"
  int64_t threads = 0;
  std::string base_name, base_sha256;
  HeadKind head = HeadKind::shared;  // personal: general scores are with each client's own
  std::vector<std::string> classes;
  std::vector<ClientSummary> clients;
  double wall_seconds = 0;
  TimeSplit time = {};  // of the server; without a federation of the one process there was
  std::vector<TimeSplit> time_by_round = {};  // of the server (federation/server/server.h)
};

// The summary of a federation. `device` and `precision` as used, `base_name` as people call it.
RunSummary summarize(const RunConfig& config, const Agreement& agreement,
                     const FederationResult& result, const std::string& base_name,
                     const std::string& device, const std::string& precision);

// Beside the fields above, JSON has `mean` and `union` (federation/report/scores.h): each score
// averaged over the clients that define it, and accuracy and balanced accuracy of the union of sites
// with 95 % bootstrap intervals.
std::string to_json(const RunSummary& summary);

// Complete or not at all. UserError where the file cannot be written.
void write_summary(const std::string& path, const RunSummary& summary);

// The inverse of to_json; what JSON has beside the fields is not read but follows from them. UserError
// names the file and the value in it that is missing or of a wrong kind.
RunSummary read_summary(const std::string& path);

// metrics.jsonl: one object for each client and round, written as the round completes. `time` here
// and in the summary: {"total": 12.5, "set_up": 3.25, ...}, seconds of each activity.
std::string to_json_line(const ClientRound& round);

class MetricsLog {
 public:
  explicit MetricsLog(const std::string& path);  // starts an empty file
  void write(const ClientRound& round);          // on disk, as far as the system goes, on return

 private:
  std::string path_;
  std::ofstream file_;
};

// From metrics.jsonl: of each round the clients' times, by client, as far as they shared them.
std::vector<std::map<std::string, TimeSplit>> read_client_times(const std::string& path,
                                                                int64_t rounds);

}  // namespace orthofed
