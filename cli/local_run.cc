#include "cli/local_run.h"

#include <filesystem>
#include <memory>

#include "cli/config.h"
#include "engine/io/files.h"
#include "federation/alone.h"
#include "federation/in_process.h"
#include "federation/processes.h"
#include "federation/vit_site.h"

namespace orthofed::cli {
namespace {

FederationResult in_threads(const RunConfig& config, const InitialState& start,
                            const std::string& folder, ServerObserver& view) {
  std::vector<std::unique_ptr<VitSite>> sites;
  std::vector<Site*> pointers;
  for (const std::string& client : config.federation.clients) {
    sites.push_back(std::make_unique<VitSite>(config, client, folder + "/clients/" + client));
    pointers.push_back(sites.back().get());
  }
  return run_in_process(config, start.agreement, start.general, pointers, view);
}

FederationResult in_processes(const RunConfig& config, const InitialState& start,
                              const std::string& folder, ServerObserver& view) {
  ProcessOptions options;
  options.threads = config.threads;
  options.command = [&](const std::string& client, const std::string& address) {
    return std::vector<std::string>{std::filesystem::read_symlink("/proc/self/exe").string(),
                                    "join",
                                    folder + "/config.toml",
                                    "--client",
                                    client,
                                    "--set",
                                    "federation.address=" + address,
                                    "--out",
                                    folder + "/clients/" + client,
                                    "--quiet"};
  };
  options.log = [&](const std::string& client) {
    make_directories(folder + "/clients/" + client);
    return folder + "/clients/" + client + "/log.txt";
  };
  return run_processes(config, start.agreement, start.general, view, options);
}

FederationResult in_one_place(const RunConfig& config, const std::string& folder,
                              Terminal& terminal, const std::string& label) {
  SiteProgress progress(terminal, label.empty() ? config.method : label);
  MetricsLog log(folder + "/metrics.jsonl");
  FederationResult result = run_alone(
      config, config.data.client, folder, progress.callbacks(),
      [&](int64_t t, int64_t rounds) { progress.round(t, rounds); },
      [&](int64_t t, const RoundReport& r) {
        ClientRound line;
        line.client = config.data.client.empty() ? "all" : config.data.client;
        line.round = t;
        line.samples = r.images;
        line.seconds = r.seconds;
        line.report = Update::Report{r.images_per_second, r.loss, r.penalties};
        log.write(line);
      });
  progress.done();
  return result;
}

}  // namespace

LocalRun run_here(const RunConfig& config, const std::string& folder, bool in_process,
                  Terminal& terminal, const std::string& label) {
  write_file(folder + "/config.toml", config_toml(config));
  const InitialState start = initial_state(config);
  if (config.method == "pooled" || (config.method == "local" && !config.data.client.empty()))
    return {start.agreement, in_one_place(config, folder, terminal, label)};
  FederationView view(terminal, config, folder, label);
  return {start.agreement, in_process ? in_threads(config, start, folder, view)
                                      : in_processes(config, start, folder, view)};
}

}  // namespace orthofed::cli
