#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>

#include "cli/commands.h"
#include "cli/session.h"
#include "cli/terminal/score_table.h"
#include "cli/terminal/site_view.h"
#include "cli/terminal/time_table.h"
#include "engine/io/files.h"
#include "engine/io/text.h"
#include "federation/client/client.h"
#include "federation/client/vit_site.h"
#include "federation/report/summary.h"
#include "models/config/keys.h"
#include "models/training/make.h"
#include "models/training/profiling.h"

namespace orthofed::cli {
namespace {

class JoinObserver : public ClientObserver {
 public:
  JoinObserver(Terminal& terminal, SiteProgress& progress)
      : terminal_(terminal), progress_(progress) {}
  void connected(const std::string& address) override {
    terminal_.message("connected to " + address);
  }
  void joined(int64_t rounds) override {
    progress_.done();
    rounds_ = rounds;
    terminal_.message(fmt::format("joined: {} rounds; waiting for the other clients", rounds));
  }
  void round_started(int64_t round, int64_t rounds) override { progress_.round(round, rounds); }
  void update_sent(int64_t, const SiteUpdate&, int64_t) override { progress_.done(); }

  int64_t rounds() const { return rounds_; }

 private:
  int64_t rounds_ = 0;
  Terminal& terminal_;
  SiteProgress& progress_;
};

// Loads the site, joins, stays to the end, and prints the site's own result.
void take_part(const JoinArguments& o, const RunConfig& config, const std::string& folder,
               Terminal& terminal) {
  const auto begin = std::chrono::steady_clock::now();
  SiteProgress progress(terminal, o.client);
  std::shared_ptr<Profile> profile;
  if (o.profile > 0) {
    terminal.message("measuring what this machine can do at best");
    const Device device = device_of(config.device);
    profile = make_profile(
        device, ceilings_of(device, compute_type(config.precision, device), config.threads),
        o.profile);
  }
  SiteTrainer::Callbacks callbacks = progress.callbacks();
  callbacks.profile = profile;
  VitSite site(config, o.client, folder, callbacks);
  progress.done();
  say_left_aside(terminal, site.trainer().tuner().model());
  JoinObserver observer(terminal, progress);
  JoinOptions options;
  options.share = config.federation.share_metrics;
  options.join_timeout_seconds = config.federation.join_timeout_seconds;
  options.max_frame_mb = config.federation.max_frame_mb;
  options.settings = shared_settings(config);
  const JoinResult result = join(config.federation.address, site, options, observer);
  if (profile) {
    const std::string table = save_profile(*profile, folder);
    if (table.empty()) warn_nothing_profiled(terminal);
    print_profile(table, o.global);
  }

  const int64_t train = int64_t(site.trainer().data().train.size());
  if (o.global.json) {
    ClientRound line;  // as in metrics.jsonl
    line.client = o.client;
    line.round = observer.rounds() - 1;
    line.samples = train;
    line.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    line.bytes_sent = result.bytes_sent;
    line.bytes_received = result.bytes_received;
    line.evaluation = result.evaluation;
    line.time = result.time;
    std::cout << to_json_line(line);
  } else if (!o.global.quiet) {
    std::vector<ScoreRow> rows = {{o.client, train, result.evaluation.personal}};
    if (result.evaluation.general.samples > 0)
      rows.push_back({"general model alone", 0, result.evaluation.general});
    std::cout << score_table(rows) << "\n"
              << time_table({{o.client, result.time}}) << "adapters in " << folder << "\n";
  }
}

}  // namespace

int join_command(const JoinArguments& o) {
  Terminal terminal(o.global);
  const RunConfig config = open_config(o.config, o.set, terminal);
  const auto& known = config.federation.clients;
  if (std::find(known.begin(), known.end(), o.client) == known.end())
    throw UserError(
        fmt::format("--client: '{}' is not in federation.clients ({})", o.client, joined(known)));
  std::string folder = o.out;
  if (folder.empty())
    folder = config.federation.state_dir.empty() ? o.client
                                                 : config.federation.state_dir + "/" + o.client;
  refuse_results(folder, "metrics.json");
  make_directories(folder);
  try {
    take_part(o, config, folder, terminal);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(folder, ignored);  // if nothing is in it
    throw;
  }
  return 0;
}

}  // namespace orthofed::cli
