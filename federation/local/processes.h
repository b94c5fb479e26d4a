// A federation on one machine as it would run on several: the server in this process, every client
// a process of its own that joins over loopback.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "federation/server/server.h"

namespace orthofed {

struct ProcessOptions {
  // The command line of a client, given its name and the server's address; it begins with a path.
  std::function<std::vector<std::string>(const std::string& client, const std::string& address)>
      command;
  // Where the client's standard error goes; its last line is quoted if it fails.
  std::function<std::string(const std::string& client)> log;
  int64_t threads = 2;  // of each client
  std::stop_token stop;
  Stopwatch time{};  // as ServerOptions'
};

// Serves on a free loopback port and starts config.federation.clients. Throws UserError with a
// client's own words if one exits with 2, Error if one dies otherwise, and whatever serve() throws.
// No process outlives the call.
FederationResult run_processes(const RunConfig& config, const Agreement& agreement,
                               const TensorMap& initial, ServerObserver& observer,
                               const ProcessOptions& options);

// Tells the clients of a call that is under way to end. For the handler of a signal that ends this
// process: it only reads and kills.
void end_clients_in_signal_handler();

}  // namespace orthofed
