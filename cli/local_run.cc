#include "cli/local_run.h"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <sstream>

#include "cli/profiling.h"
#include "engine/io/files.h"
#include "federation/client/vit_site.h"
#include "federation/local/alone.h"
#include "federation/local/in_process.h"
#include "federation/local/processes.h"
#include "models/config/toml.h"
#include "models/training/site_data.h"

namespace orthofed::cli {
namespace {

// One call of run_here().
class Here {
 public:
  Here(const RunConfig& config, const std::string& folder, Terminal& terminal,
       const std::string& label, int64_t profile_steps)
      : config_(config),
        folder_(folder),
        terminal_(terminal),
        label_(label),
        profile_steps_(profile_steps),
        start_(initial_state(config)) {}

  LocalRun in_one_place() {
    const auto profile = make_profile(config_, ceilings(), profile_steps_);
    SiteProgress progress(terminal_, label_.empty() ? config_.method : label_);
    SiteTrainer::Callbacks callbacks = progress.callbacks();
    callbacks.profile = profile;
    MetricsLog log(folder_ + "/metrics.jsonl");
    FederationResult result = run_alone(
        config_, config_.data.client, folder_, callbacks,
        [&](int64_t t, int64_t rounds) { progress.round(t, rounds); },
        [&](int64_t t, const RoundReport& r) {
          ClientRound line;
          line.client = config_.data.client.empty() ? "all" : config_.data.client;
          line.round = t;
          line.samples = r.images;
          line.seconds = r.seconds;
          line.report = Update::Report{r.images_per_second, r.loss, r.penalties};
          log.write(line);
        },
        time_);
    progress.done();
    return {start_.agreement, std::move(result), save_profile(profile.get(), folder_, terminal_)};
  }

  LocalRun in_threads() {
    FederationView view(terminal_, config_, folder_, label_);
    const Ceilings at_best = ceilings();
    const std::unique_ptr<Vit> base = load_base(config_);  // one, frozen, for all
    say_left_aside(terminal_, *base);
    std::vector<std::shared_ptr<Profile>> profiles;
    std::vector<std::unique_ptr<VitSite>> sites;
    std::vector<Site*> pointers;
    for (const std::string& client : config_.federation.clients) {
      SiteTrainer::Callbacks callbacks;
      callbacks.skipped = [&](const std::vector<BadImage>& bad) {
        warn_skipped(terminal_, bad, client);
      };
      callbacks.profile = profiles.emplace_back(make_profile(config_, at_best, profile_steps_));
      sites.push_back(
          std::make_unique<VitSite>(config_, client, folder_of(client), callbacks, base.get()));
      pointers.push_back(sites.back().get());
    }
    ServerOptions options;
    options.time = time_;
    FederationResult result =
        run_in_process(config_, start_.agreement, start_.general, pointers, view, options);
    for (size_t i = 0; i < profiles.size(); ++i)
      save_profile(profiles[i].get(), folder_of(config_.federation.clients[i]), terminal_);
    return finished(std::move(result));
  }

  LocalRun in_processes() {
    FederationView view(terminal_, config_, folder_, label_);
    ProcessOptions options;
    options.threads = config_.threads;
    options.time = time_;
    options.command = [&](const std::string& client, const std::string& address) {
      std::vector<std::string> words = {std::filesystem::read_symlink("/proc/self/exe").string(),
                                        "join",
                                        folder_ + "/config.toml",
                                        "--client",
                                        client,
                                        "--set",
                                        "federation.address=" + address,
                                        "--out",
                                        folder_of(client),
                                        "--quiet"};
      if (profile_steps_ > 0) words.push_back(fmt::format("--profile={}", profile_steps_));
      return words;
    };
    options.log = [&](const std::string& client) {
      make_directories(folder_of(client));
      return folder_of(client) + "/log.txt";
    };
    FederationResult result =
        run_processes(config_, start_.agreement, start_.general, view, options);
    for (const std::string& client : config_.federation.clients)
      relay_warnings(folder_of(client) + "/log.txt");
    return finished(std::move(result));
  }

 private:
  std::string folder_of(const std::string& client) const { return folder_ + "/clients/" + client; }

  Ceilings ceilings() { return profile_steps_ > 0 ? ceilings_for(config_, terminal_) : Ceilings{}; }

  // A client's warnings are in its log, where nobody looks.
  void relay_warnings(const std::string& log) {
    const std::string mark = "warning: ";
    std::istringstream lines(read_text(log));
    for (std::string line; std::getline(lines, line);)
      if (line.starts_with(mark)) terminal_.warning(line.substr(mark.size()));
  }

  LocalRun finished(FederationResult result) {
    LocalRun run{start_.agreement, std::move(result), {}};
    if (profile_steps_ == 0) return run;
    const auto training = [](const ClientResult& c) {
      return c.time ? (*c.time)[Activity::training] : 0;
    };
    const auto& clients = run.result.clients;
    const std::string longest =
        std::max_element(clients.begin(), clients.end(), [&](const auto& a, const auto& b) {
          return training(a) < training(b);
        })->client;
    const std::string table = folder_of(longest) + "/profile.txt";
    if (std::filesystem::exists(table))
      run.profile =
          fmt::format("client {}, which trained longest (all: {}/clients/*/profile.txt)\n{}",
                      longest, folder_, read_text(table));
    return run;
  }

  const RunConfig& config_;
  const std::string& folder_;
  Terminal& terminal_;
  const std::string& label_;
  const int64_t profile_steps_;
  const Stopwatch time_{Activity::set_up};
  const InitialState start_;
};

// Before anything is started. Data that names no clients would be everybody's.
void require_images_of_every_client(const RunConfig& config) {
  const Dataset data = open_dataset(config);
  for (const std::string& client : config.federation.clients) select(data, client, "");
}

}  // namespace

LocalRun run_here(const RunConfig& config, const std::string& folder, bool in_process,
                  Terminal& terminal, const std::string& label, int64_t profile_steps) {
  write_file(folder + "/config.toml", config_toml(config));
  Here here(config, folder, terminal, label, profile_steps);
  if (config.method == "pooled" || (config.method == "local" && !config.data.client.empty()))
    return here.in_one_place();
  require_images_of_every_client(config);
  return in_process ? here.in_threads() : here.in_processes();
}

}  // namespace orthofed::cli
