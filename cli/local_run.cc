#include "cli/local_run.h"

#include <filesystem>
#include <memory>
#include <sstream>

#include "cli/config.h"
#include "engine/io/files.h"
#include "federation/alone.h"
#include "federation/in_process.h"
#include "federation/processes.h"
#include "federation/vit_site.h"
#include "models/site_data.h"

namespace orthofed::cli {
namespace {

FederationResult in_threads(const RunConfig& config, const InitialState& start,
                            const std::string& folder, Terminal& terminal, ServerObserver& view) {
  const std::unique_ptr<Vit> base = load_base(config);  // one, frozen, for all
  say_left_aside(terminal, *base);
  std::vector<std::unique_ptr<VitSite>> sites;
  std::vector<Site*> pointers;
  for (const std::string& client : config.federation.clients) {
    SiteTrainer::Callbacks callbacks;
    callbacks.skipped = [&](const std::vector<BadImage>& bad) {
      warn_skipped(terminal, bad, client);
    };
    sites.push_back(std::make_unique<VitSite>(config, client, folder + "/clients/" + client,
                                              callbacks, base.get()));
    pointers.push_back(sites.back().get());
  }
  return run_in_process(config, start.agreement, start.general, pointers, view);
}

// A client's warnings are in its log, where nobody looks.
void relay_warnings(const std::string& log, Terminal& terminal) {
  const std::string mark = "warning: ";
  std::istringstream lines(read_text(log));
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with(mark)) terminal.warning(line.substr(mark.size()));
}

FederationResult in_processes(const RunConfig& config, const InitialState& start,
                              const std::string& folder, Terminal& terminal, ServerObserver& view) {
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
  FederationResult result = run_processes(config, start.agreement, start.general, view, options);
  for (const std::string& client : config.federation.clients)
    relay_warnings(folder + "/clients/" + client + "/log.txt", terminal);
  return result;
}

FederationResult in_one_place(const RunConfig& config, const std::string& folder,
                              Terminal& terminal, const std::string& label,
                              const std::shared_ptr<Profile>& profile) {
  SiteProgress progress(terminal, label.empty() ? config.method : label);
  SiteTrainer::Callbacks callbacks = progress.callbacks();
  callbacks.profile = profile;
  MetricsLog log(folder + "/metrics.jsonl");
  FederationResult result = run_alone(
      config, config.data.client, folder, callbacks,
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

// Before anything is started. Data that names no clients would be everybody's.
void require_images_of_every_client(const RunConfig& config) {
  const Dataset data = open_dataset(config);
  for (const std::string& client : config.federation.clients) select(data, client, "");
}

}  // namespace

LocalRun run_here(const RunConfig& config, const std::string& folder, bool in_process,
                  Terminal& terminal, const std::string& label,
                  const std::shared_ptr<Profile>& profile) {
  write_file(folder + "/config.toml", config_toml(config));
  const InitialState start = initial_state(config);
  if (config.method == "pooled" || (config.method == "local" && !config.data.client.empty()))
    return {start.agreement, in_one_place(config, folder, terminal, label, profile)};
  require_images_of_every_client(config);
  FederationView view(terminal, config, folder, label);
  return {start.agreement, in_process ? in_threads(config, start, folder, terminal, view)
                                      : in_processes(config, start, folder, terminal, view)};
}

}  // namespace orthofed::cli
