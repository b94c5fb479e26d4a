// The client: joins a server with one Site and takes part until the server says that it is over.
//
// What leaves the site is decided here and nowhere else: the tensors of the agreed schema, n_i, and
// the figures that share_metrics allows. Errors of the site reach the server as one of a few fixed
// phrases; their text, which may name files or labels, stays at the site.
#pragma once
#include <cstdint>
#include <stop_token>
#include <string>

#include "federation/net/transport.h"
#include "federation/wire/messages.h"

namespace orthofed {

// Called on join()'s thread.
class ClientObserver {
 public:
  virtual ~ClientObserver() = default;
  virtual void connected(const std::string& /*address*/) {}
  virtual void joined(int64_t /*rounds*/) {}  // accepted: waiting for the other clients
  virtual void round_started(int64_t /*round*/, int64_t /*rounds*/) {}
  virtual void update_sent(int64_t /*round*/, const SiteUpdate& /*update*/, int64_t /*bytes*/) {}
  // Whole, whatever is shared.
  virtual void evaluated(int64_t /*rounds_done*/, const SiteEvaluation& /*evaluation*/) {}
};

struct JoinOptions {
  ShareMetrics share = ShareMetrics::confusion;
  double join_timeout_seconds = 600;  // the longest time until a server accepts
  int64_t max_frame_mb = 256;
  std::stop_token stop;  // looked at whenever join() waits; a site watches its own while it trains
  TransportOptions transport;
  Settings settings = {};  // this client's, as far as the server may name them
};

struct JoinResult {
  TensorMap general;          // theta^T
  SiteEvaluation evaluation;  // of theta^T and the personal adapter
  int64_t bytes_sent = 0, bytes_received = 0;
  TimeSplit time = {};  // from the site's making to the server's Bye
};

// Throws UserError where no server answers, it refuses (with its reason) or it trains with other
// settings (naming each), FederationError where
// the run fails elsewhere, Cancelled on stop, and whatever the site throws. In each case the server
// is told that this client is gone.
JoinResult join(const std::string& address, Site& site, const JoinOptions& options,
                ClientObserver& observer);

}  // namespace orthofed
