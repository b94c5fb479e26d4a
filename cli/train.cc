#include "cli/commands.h"
#include "cli/local_run.h"
#include "cli/session.h"
#include "models/config/toml.h"
#include "models/methods/method.h"

namespace orthofed::cli {

// One site's images train a personal adapter; without data.client everybody's train one.
int train_command(const TrainArguments& o) {
  Terminal terminal(o.global);
  std::vector<std::string> set = o.set;
  const bool one_site = !load_config(o.config, o.set).data.client.empty();
  set.push_back(std::string("method=") + method_alone(!one_site).name);
  const RunConfig config = open_config(o.config, set, terminal);
  const OutputFolder folder(o.out, "summary.json");
  print_run(run_shown(config, o.out, true, terminal, config.data.client, o.profile), o.out,
            o.global);
  return 0;
}

}  // namespace orthofed::cli
