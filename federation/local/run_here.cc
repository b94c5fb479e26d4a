#include "federation/local/run_here.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <sstream>

#include "engine/io/files.h"
#include "federation/client/vit_site.h"
#include "federation/local/alone.h"
#include "federation/local/in_process.h"
#include "federation/local/processes.h"
#include "federation/report/results.h"
#include "models/config/toml.h"
#include "models/methods/method.h"
#include "models/training/make.h"
#include "models/training/profiling.h"

namespace orthofed {
namespace {

// One call of run_here().
class Here {
 public:
  Here(const RunConfig& config, const std::string& folder, const LocalOptions& options,
       RunObserver& observer)
      : config_(config),
        folder_(folder),
        options_(options),
        observer_(observer),
        start_(initial_state(config)) {}

  LocalRun alone() {
    const std::string& site = config_.data.client;
    Recorder recorder = record();
    const auto profile = profile_on(ceilings());
    SiteTrainer::Callbacks callbacks;
    callbacks.decoding = [&](int64_t done, int64_t total) { observer_.decoded(done, total); };
    callbacks.skipped = [&](const std::vector<BadImage>& bad) {
      observer_.images_skipped(site, bad);
    };
    callbacks.step = [&](int64_t done, int64_t total, double) { observer_.trained(done, total); };
    callbacks.profile = profile;
    const FederationResult result = run_alone(
        config_, site, folder_, callbacks,
        [&](int64_t t, int64_t rounds) { recorder.round_started(t, rounds); },
        [&](int64_t t, const RoundReport& r) {
          ClientRound line;
          line.client = site.empty() ? "all" : site;
          line.round = t;
          line.samples = r.images;
          line.seconds = r.seconds;
          line.report = Update::Report{r.images_per_second, r.loss, r.penalties};
          recorder.client_round(line);
        },
        time_);
    recorder.finished(result);
    return {result, recorder.summary(), save(profile.get(), folder_), ""};
  }

  LocalRun in_threads() {
    Recorder recorder = record();
    const Ceilings at_best = ceilings();
    const std::unique_ptr<Vit> base = load_base(config_);  // one, frozen, for all
    observer_.base_loaded(*base);
    std::vector<std::shared_ptr<Profile>> profiles;
    std::vector<std::unique_ptr<VitSite>> sites;
    std::vector<Site*> pointers;
    for (const std::string& client : config_.federation.clients) {
      SiteTrainer::Callbacks callbacks;
      callbacks.skipped = [&](const std::vector<BadImage>& bad) {
        observer_.images_skipped(client, bad);
      };
      callbacks.profile = profiles.emplace_back(profile_on(at_best));
      sites.push_back(
          std::make_unique<VitSite>(config_, client, folder_of(client), callbacks, base.get()));
      pointers.push_back(sites.back().get());
    }
    ServerOptions server;
    server.time = time_;
    const FederationResult result =
        run_in_process(config_, start_.agreement, start_.general, pointers, recorder, server);
    for (size_t i = 0; i < profiles.size(); ++i)
      save(profiles[i].get(), folder_of(config_.federation.clients[i]));
    return with_longest_profile(result, recorder.summary());
  }

  LocalRun in_processes() {
    Recorder recorder = record();
    ProcessOptions processes;
    processes.threads = config_.threads;
    processes.time = time_;
    processes.command = [&](const std::string& client, const std::string& address) {
      return options_.client_command(client, address, folder_of(client));
    };
    processes.log = [&](const std::string& client) {
      make_directories(folder_of(client));
      return folder_of(client) + "/log.txt";
    };
    const FederationResult result =
        run_processes(config_, start_.agreement, start_.general, recorder, processes);
    for (const std::string& client : config_.federation.clients)
      relay_warnings(folder_of(client) + "/log.txt");
    return with_longest_profile(result, recorder.summary());
  }

 private:
  Recorder record() { return {config_, start_.agreement, folder_, observer_}; }
  std::string folder_of(const std::string& client) const { return folder_ + "/clients/" + client; }

  Ceilings ceilings() {
    if (options_.profile_steps == 0) return {};
    observer_.measuring_machine();
    const Device device = device_of(config_.device);
    return ceilings_of(device, compute_type(config_.precision, device), config_.threads);
  }
  std::shared_ptr<Profile> profile_on(const Ceilings& at_best) {
    return make_profile(device_of(config_.device), at_best, options_.profile_steps);
  }
  std::string save(const Profile* profile, const std::string& folder) {
    if (profile == nullptr) return {};
    std::string table = save_profile(*profile, folder);
    if (table.empty()) observer_.nothing_profiled();
    return table;
  }

  // A client's warnings are in its log, where nobody looks.
  void relay_warnings(const std::string& log) {
    const std::string mark = "warning: ";
    std::istringstream lines(read_text(log));
    for (std::string line; std::getline(lines, line);)
      if (line.starts_with(mark)) observer_.client_warned(line.substr(mark.size()));
  }

  LocalRun with_longest_profile(const FederationResult& result, const RunSummary& summary) {
    LocalRun run{result, summary, "", ""};
    if (options_.profile_steps == 0) return run;
    const auto training = [](const ClientResult& c) {
      return c.time ? (*c.time)[Activity::training] : 0;
    };
    run.profiled_client =
        std::max_element(result.clients.begin(), result.clients.end(),
                         [&](const auto& a, const auto& b) { return training(a) < training(b); })
            ->client;
    const std::string table = folder_of(run.profiled_client) + "/profile.txt";
    if (std::filesystem::exists(table)) run.profile = read_text(table);
    return run;
  }

  const RunConfig& config_;
  const std::string& folder_;
  const LocalOptions& options_;
  RunObserver& observer_;
  const Stopwatch time_{Activity::set_up};
  const InitialState start_;
};

// Before anything is started. Data that names no clients would be everybody's.
void require_images_of_every_client(const RunConfig& config) {
  const Dataset data = open_dataset(config);
  for (const std::string& client : config.federation.clients) select(data, client, "");
}

}  // namespace

bool trains_alone(const RunConfig& config) {
  const Method& method = method_named(config.method);
  return !method.federated() && (method.all_images || !config.data.client.empty());
}

LocalRun run_here(const RunConfig& config, const std::string& folder, const LocalOptions& options,
                  RunObserver& observer) {
  write_file(folder + "/config.toml", config_toml(config));
  Here here(config, folder, options, observer);
  if (trains_alone(config)) return here.alone();
  require_images_of_every_client(config);
  return options.client_command ? here.in_processes() : here.in_threads();
}

}  // namespace orthofed
