#include "cli/session.h"

#include <fmt/core.h>

#include <filesystem>
#include <regex>

#include "engine/io/files.h"
#include "kernels/core/parallel.h"
#include "models/config/toml.h"
#include "models/training/make.h"
#include "models/training/site_data.h"

namespace orthofed::cli {

namespace fs = std::filesystem;

RunConfig open_config(const std::string& file, const std::vector<std::string>& set,
                      Terminal& terminal) {
  std::vector<std::string> notes;
  RunConfig config = completed(load_config(file, set, &notes));
  for (const std::string& note : notes) terminal.message(note);
  const Device device = device_of(config.device);
  if (config.precision == Precision::automatic && device == Device::cpu && !cpu::native_bf16())
    terminal.warning("this processor does not multiply bf16 natively: computing in fp32");
  config.device = value_of<DeviceChoice>(name_of(device)).value();
  config.precision = value_of<Precision>(name_of(compute_type(config.precision, device))).value();
  cpu::set_threads(int(config.threads));
  return config;
}

// What engine/io/files.h's AtomicFile leaves where its process is killed: PATH.PID-N.tmp.
static void remove_half_written(const std::string& folder) {
  static const std::regex temporary(R"(\.[0-9]+-[0-9]+\.tmp$)");
  std::vector<fs::path> found;
  std::error_code ignored;
  for (const auto& entry : fs::recursive_directory_iterator(folder, ignored))
    if (std::regex_search(entry.path().filename().string(), temporary))
      found.push_back(entry.path());
  for (const fs::path& path : found) fs::remove(path, ignored);
}

void refuse_results(const std::string& folder, const std::string& marker) {
  if (fs::exists(folder + "/" + marker))
    throw UserError(
        fmt::format("{}: holds the results of a run already ({}); name another folder or "
                    "remove it",
                    folder, marker));
}

OutputFolder::OutputFolder(const std::string& folder, const std::string& marker)
    : folder_(folder), marker_(folder + "/" + marker), made_here_(!fs::exists(folder)) {
  refuse_results(folder, marker);
  make_directories(folder);
  remove_half_written(folder);
}

OutputFolder::~OutputFolder() {
  std::error_code ignored;
  remove_half_written(folder_);
  const std::string metrics = folder_ + "/metrics.jsonl";
  const bool trained = fs::exists(metrics, ignored) && fs::file_size(metrics, ignored) > 0;
  if (made_here_ && !trained && !fs::exists(marker_, ignored)) fs::remove_all(folder_, ignored);
}

}  // namespace orthofed::cli
