#include <fmt/core.h>

#include <algorithm>
#include <iostream>

#include "cli/commands.h"
#include "cli/session.h"
#include "engine/io/files.h"
#include "federation/client.h"
#include "federation/vit_site.h"

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
    terminal_.message(fmt::format("joined: {} rounds; waiting for the other clients", rounds));
  }
  void round_started(int64_t round, int64_t rounds) override { progress_.round(round, rounds); }
  void update_sent(int64_t, const SiteUpdate&, int64_t) override { progress_.done(); }

 private:
  Terminal& terminal_;
  SiteProgress& progress_;
};

}  // namespace

int join(const JoinOptions& o) {
  Terminal terminal(o.global);
  const RunConfig config = open_config(o.config, o.set, terminal);
  const auto& known = config.federation.clients;
  if (std::find(known.begin(), known.end(), o.client) == known.end())
    throw UserError(fmt::format("--client: '{}' is not in federation.clients", o.client));
  std::string folder = o.out;
  if (folder.empty())
    folder = config.federation.state_dir.empty() ? o.client
                                                 : config.federation.state_dir + "/" + o.client;
  make_directories(folder);

  SiteProgress progress(terminal, o.client);
  VitSite site(config, o.client, folder, progress.callbacks());
  progress.done();
  JoinObserver observer(terminal, progress);
  orthofed::JoinOptions options;
  options.share = parse_share_metrics(config.federation.share_metrics);
  options.join_timeout_seconds = config.federation.join_timeout_seconds;
  options.max_frame_mb = config.federation.max_frame_mb;
  const JoinResult result = orthofed::join(config.federation.address, site, options, observer);
  if (!o.global.quiet && !o.global.json) {
    std::vector<ScoreRow> rows = {
        {o.client, int64_t(site.trainer().data().train.size()), result.evaluation.personal}};
    if (result.evaluation.general.samples > 0)
      rows.push_back({"general model alone", 0, result.evaluation.general});
    std::cout << score_table(rows) << "adapters in " << folder << "\n";
  }
  return 0;
}

}  // namespace orthofed::cli
