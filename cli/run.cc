#include "cli/commands.h"
#include "cli/local_run.h"
#include "cli/profiling.h"
#include "cli/terminal/federation_view.h"

namespace orthofed::cli {

int run(const RunOptions& o) {
  Terminal terminal(o.global);
  RunConfig config = open_config(o.config, o.set, terminal);
  if (!config.data.client.empty()) {
    terminal.message("data.client is for `train` and `eval`: every client takes part in a run");
    config.data.client.clear();
  }
  const OutputFolder folder(o.out, "summary.json");
  const LocalRun done = run_here(config, o.out, o.in_process, terminal, "", o.profile);
  print_profile(done.profile, o.global);
  report(config, done.agreement, done.result, o.out, o.global);
  return 0;
}

}  // namespace orthofed::cli
