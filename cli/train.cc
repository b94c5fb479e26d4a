#include "cli/commands.h"
#include "cli/local_run.h"
#include "cli/profiling.h"
#include "cli/terminal/federation_view.h"
#include "models/config/toml.h"

namespace orthofed::cli {

// One site's images train a personal adapter (method local); without data.client everybody's train
// one (method pooled).
int train(const TrainOptions& o) {
  Terminal terminal(o.global);
  std::vector<std::string> set = o.set;
  const bool one_site = !load_config(o.config, o.set).data.client.empty();
  set.push_back(one_site ? "method=local" : "method=pooled");
  const RunConfig config = open_config(o.config, set, terminal);
  const OutputFolder folder(o.out, "summary.json");
  const LocalRun done = run_here(config, o.out, true, terminal, config.data.client, o.profile);
  print_profile(done.profile, o.global);
  report(config, done.agreement, done.result, o.out, o.global);
  return 0;
}

}  // namespace orthofed::cli
