#include "cli/local_run.h"

#include <fmt/core.h>

#include <filesystem>

#include "cli/terminal/federation_view.h"
#include "engine/tensor/watch.h"

namespace orthofed::cli {

LocalRun run_shown(const RunConfig& config, const std::string& folder, bool in_process,
                   Terminal& terminal, const std::string& label, int64_t profile_steps) {
  LocalOptions options;
  options.profile_steps = profile_steps;
  if (!in_process)
    options.client_command = [&](const std::string& client, const std::string& address,
                                 const std::string& of_client) {
      std::vector<std::string> words = {std::filesystem::read_symlink("/proc/self/exe").string(),
                                        "join",
                                        folder + "/config.toml",
                                        "--client",
                                        client,
                                        "--set",
                                        "federation.address=" + address,
                                        "--out",
                                        of_client,
                                        "--quiet"};
      if (profile_steps > 0) words.push_back(fmt::format("--profile={}", profile_steps));
      if (shadow_asked()) words.insert(words.end(), {"--shadow", "cpu"});
      if (finite_check_asked()) words.push_back("--check-finite");
      return words;
    };
  FederationView view(terminal, config, label);
  return run_here(config, folder, options, view);
}

void print_run(const LocalRun& run, const std::string& folder, const GlobalOptions& global) {
  const std::string whose =
      run.profile.empty() || run.profiled_client.empty()
          ? ""
          : fmt::format("client {}, which trained longest (all: {}/clients/*/profile.txt)\n",
                        run.profiled_client, folder);
  print_profile(whose + run.profile, global);
  print_result(run.summary, folder, global);
}

}  // namespace orthofed::cli
