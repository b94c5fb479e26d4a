#include "cli/commands.h"
#include "cli/local_run.h"
#include "cli/session.h"

namespace orthofed::cli {

int run_command(const RunArguments& o) {
  Terminal terminal(o.global);
  RunConfig config = open_config(o.config, o.set, terminal);
  if (!config.data.client.empty()) {
    terminal.message("data.client is for `train` and `eval`: every client takes part in a run");
    config.data.client.clear();
  }
  const OutputFolder folder(o.out, "summary.json");
  print_run(run_shown(config, o.out, o.in_process, terminal, "", o.profile), o.out, o.global);
  return 0;
}

}  // namespace orthofed::cli
