#include <fmt/core.h>

#include "cli/commands.h"
#include "cli/session.h"
#include "cli/terminal/federation_view.h"
#include "engine/io/files.h"
#include "federation/client/vit_site.h"
#include "federation/report/results.h"
#include "models/config/keys.h"
#include "models/config/toml.h"
#include "models/methods/method.h"

namespace orthofed::cli {

int serve_command(const ServeArguments& o) {
  Terminal terminal(o.global);
  const RunConfig config = open_config(o.config, o.set, terminal);
  if (method_named(config.method).all_images)
    throw UserError("method: " + config.method +
                    " needs all images in one place; use `orthofed run`");
  const OutputFolder folder(o.out, "summary.json");
  ServerOptions options;  // its clock runs from here
  const InitialState start = initial_state(config);
  write_file(o.out + "/config.toml", config_toml(config));
  FederationView view(terminal, config);
  Recorder recorder(config, start.agreement, o.out, view);
  options.settings = shared_settings(config);
  options.listening = [&](uint16_t port) {
    terminal.message(fmt::format("listening on port {}; waiting for {} clients", port,
                                 config.federation.clients.size()));
  };
  serve(config, start.agreement, start.general, recorder, options);
  print_result(recorder.summary(), o.out, o.global);
  return 0;
}

}  // namespace orthofed::cli
