// `orthofed config`
#include <iostream>

#include "cli/commands.h"
#include "models/config/keys.h"
#include "models/methods/method.h"

namespace orthofed::cli {

int config_command(const ConfigArguments& options) {
  std::cout << (options.markdown
                    ? options.section == "method" ? methods_markdown() : config_markdown()
                : options.global.json ? config_json(options.section)
                                      : config_listing(options.section));
  return 0;
}

}  // namespace orthofed::cli
