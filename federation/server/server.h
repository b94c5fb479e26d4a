// The server: waits for its clients, runs the rounds (METHOD: Round), and averages what they send.
//
//   join      every configured client, checked against the Agreement
//   round t   broadcast theta^t to all -> one Update of each, in any order -> theta^{t+1}
//   final     broadcast theta^T -> one Metrics of each -> Bye
//
// A client that dies, takes longer than federation.timeout_seconds or answers what it must not ends
// the run: every other client is told why, and serve() throws the same reason.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "federation/net/transport.h"
#include "federation/wire/messages.h"
#include "models/config/config.h"

namespace orthofed {

// What one client did in one round. Bytes are whole frames, headers included, as the client sees
// them: sent = client to server. The last round counts the final broadcast too.
struct ClientRound {
  std::string client;
  int64_t round = 0;                           // 0 .. rounds-1
  int64_t samples = 0;                         // n_i
  double seconds = 0;                          // from the broadcast to the whole update
  int64_t bytes_sent = 0, bytes_received = 0;  // with the scores that belong to this round
  std::optional<Update::Report> report;        // where the client shares it
  // Scores of the average of this round, with the client's personal adapter after this round: of
  // the last round, or of every round with federation.evaluate_every_round; as far as shared.
  std::optional<SiteEvaluation> evaluation;
  // How the client has spent its time since its record before, or its start; as far as shared.
  std::optional<TimeSplit> time = {};
};

struct ClientResult {
  std::string client;
  int64_t samples = 0;                         // n_i of the last round
  std::optional<SiteEvaluation> evaluation;    // of theta^T, as far as shared
  double images_per_second = 0;                // mean over rounds; NaN where not shared
  int64_t bytes_sent = 0, bytes_received = 0;  // in the whole run, joining included
  std::optional<TimeSplit> time = {};  // from its start to its last scores, as far as shared
};

struct FederationResult {
  TensorMap general;                  // theta^T: general adapter and shared head
  std::vector<ClientResult> clients;  // by name
  double wall_seconds = 0;            // from the first broadcast to the last score
  TimeSplit time = {};                // this process's, set-up included
  // Of each round: from the end of the one before, or the start, to its average; the last one's
  // goes on to the last score. They add up to `time`. Empty without a server.
  std::vector<TimeSplit> time_by_round = {};
};

// Called on serve()'s thread as things happen. What an observer throws ends the run.
class ServerObserver {
 public:
  virtual ~ServerObserver() = default;
  virtual void client_joined(const std::string& /*client*/, size_t /*joined*/,
                             size_t /*expected*/) {}
  // Before the first round a client may go, and come again.
  virtual void client_left(const std::string& /*client*/, const std::string& /*why*/) {}
  virtual void client_refused(const std::string& /*peer*/, const std::string& /*why*/) {}
  virtual void round_started(int64_t /*round*/, int64_t /*rounds*/) {}
  virtual void update_received(const ClientRound& /*so_far*/) {}
  virtual void round_aggregated(int64_t /*round*/, const TensorMap& /*general*/) {}
  virtual void metrics_received(const std::string& /*client*/, int64_t /*rounds_done*/,
                                const std::optional<SiteEvaluation>& /*evaluation*/) {}
  // Once for each client and round, when all that belongs to it has arrived: one line of
  // metrics.jsonl. A run that fails reports what had arrived first.
  virtual void client_round(const ClientRound& /*complete*/) {}
  // Before the clients are told that the run is over: what is thrown here ends it for them as well.
  virtual void finished(const FederationResult& /*result*/) {}
};

struct ServerOptions {
  std::stop_token stop;
  std::function<void(uint16_t)>
      listening;  // called with the port, which the address may leave open
  TransportOptions transport;
  Settings settings = {};  // sent to every client, which compares them with its own
  Stopwatch time{};        // made where the caller begins to set the run up
};

// Runs one federation: method, rounds and [federation] of `config`; clients must match `agreement`,
// whose schema describes `initial` = theta^0. Throws UserError where the configuration or the
// address is at fault, FederationError naming client, round and cause where a client is, Cancelled
// on stop.
FederationResult serve(const RunConfig& config, const Agreement& agreement,
                       const TensorMap& initial, ServerObserver& observer,
                       const ServerOptions& options = {});

}  // namespace orthofed
