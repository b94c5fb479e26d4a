// A whole federation in one process: the server on the calling thread, each client on a thread of
// its own, the same frames over loopback sockets. What `orthofed run --in-process` and tests use.
#pragma once
#include <vector>

#include "federation/client/client.h"
#include "federation/server/server.h"

namespace orthofed {

// `sites` are config.federation.clients, by name; the address in `config` is not used. Every
// client's share_metrics and max_frame_mb are those of `config`. `observers`: one for each site, in
// order, called on that site's thread; empty: none.
//
// Throws what a site threw, if one did, else what the server threw. No thread outlives the call.
FederationResult run_in_process(const RunConfig& config, const Agreement& agreement,
                                const TensorMap& initial, const std::vector<Site*>& sites,
                                ServerObserver& observer, const ServerOptions& options = {},
                                const std::vector<ClientObserver*>& observers = {});

}  // namespace orthofed
