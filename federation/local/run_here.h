// A whole run on this machine, whatever its method: a federation, its clients being threads or
// processes that join over loopback, or one site alone.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "federation/report/summary.h"
#include "models/training/site_data.h"
#include "models/vit/vit.h"

namespace orthofed {

// What a run tells while it goes on, beside what its server tells. Without a server, round_started,
// client_round and finished are called as one would call them. All calls are made on the thread that
// called run_here().
class RunObserver : public ServerObserver {
 public:
  virtual void measuring_machine() {}               // for a profile, about a second
  virtual void base_loaded(const Vit& /*base*/) {}  // the one base of all clients that are threads
  virtual void images_skipped(const std::string& /*client*/, const std::vector<BadImage>&) {}
  virtual void client_warned(const std::string& /*text*/) {}  // a client that is a process
  virtual void nothing_profiled() {}  // the run had no more steps than warm up
  // Of a site alone: images.
  virtual void decoded(int64_t /*done*/, int64_t /*total*/) {}
  virtual void trained(int64_t /*done*/, int64_t /*of_round*/) {}
};

struct LocalOptions {
  // The command line that starts a client as a process, given its name, the server's address and the
  // client's folder; the first word is a path. The process takes part in the run of
  // FOLDER/config.toml and says on standard error what it has to say, warnings as "warning: ...".
  // Null: clients are threads of this process.
  std::function<std::vector<std::string>(const std::string& client, const std::string& address,
                                         const std::string& folder)>
      client_command;
  // To be measured by each thread that trains; processes are told by their command. 0: none.
  int64_t profile_steps = 0;
};

struct LocalRun {
  FederationResult result;
  RunSummary summary;
  // Of `profile_steps`: the table of the client that trained longest, or of the one site. Empty
  // where nothing was measured.
  std::string profile, profiled_client;
};

// Does the method's one site train alone, without server and rounds of averaging?
bool trains_alone(const RunConfig& config);

// Writes config.toml, every client's folder (clients/NAME; alone: the folder itself) and the files of
// federation/report/results.h under `folder`, which exists. Of the configuration, device and
// precision are what is to be used, not "auto". Throws as serve(), run_processes() and run_alone().
LocalRun run_here(const RunConfig& config, const std::string& folder, const LocalOptions& options,
                  RunObserver& observer);

}  // namespace orthofed
