#include "cli/commands.h"
#include "cli/config.h"
#include "cli/federation_view.h"
#include "cli/local_run.h"

namespace orthofed::cli {

// One site's images train a personal adapter (method local); without data.client everybody's train
// one (method pooled).
int train(const TrainOptions& o) {
  Terminal terminal(o.global);
  const RunConfig asked = open_config(o.config, o.set, terminal);
  std::vector<std::string> set = o.set;
  set.push_back(asked.data.client.empty() ? "method=pooled" : "method=local");
  RunConfig config = completed(load_config(o.config, set));
  open_output(o.out, "summary.json");
  const LocalRun done = run_here(config, o.out, true, terminal, config.data.client);
  report(config, done.agreement, done.result, o.out, o.global);
  return 0;
}

}  // namespace orthofed::cli
