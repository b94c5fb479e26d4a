// `orthofed doctor`: what this program finds on this machine, for a person who wonders why it is
// slow and for a bug report.
#include <fmt/core.h>
#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/terminal/json.h"
#include "cli/terminal/units.h"
#include "cli/version.h"
#include "kernels/core/cuda_device.h"
#include "kernels/core/parallel.h"
#include "kernels/matmul/matmul.h"
#include "models/training/make.h"

namespace orthofed::cli {

namespace {

// One line of the report. `json` is the value as JSON, `text` as people read it.
struct Finding {
  std::string section, key, text, json;
};

Finding text_finding(const char* section, const char* key, const std::string& text) {
  return {section, key, text, json_text(text)};
}

Finding count_finding(const char* section, const char* key, int64_t count) {
  return {section, key, std::to_string(count), std::to_string(count)};
}

// Bytes below 0 are not known.
Finding bytes_finding(const char* section, const char* key, int64_t bytes) {
  if (bytes < 0) return {section, key, "unknown", "null"};
  return {section, key, format_bytes(static_cast<double>(bytes)), std::to_string(bytes)};
}

// The value after "KEY :" or "KEY=" in a file of such lines; empty if there is none.
std::string value_in(const char* file, const std::string& key) {
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) {
    if (line.compare(0, key.size(), key) != 0) continue;
    const size_t value = line.find_first_not_of(" \t:=\"", key.size());
    if (value == std::string::npos || value == key.size()) continue;
    return line.substr(value, line.find_last_not_of(" \t\"") + 1 - value);
  }
  return "";
}

std::string or_unknown(const std::string& text) {
  return text.empty() ? "unknown" : text;
}

// /proc/meminfo counts in KiB.
int64_t meminfo(const std::string& key) {
  const std::string text = value_in("/proc/meminfo", key);
  return text.empty() ? -1 : std::strtoll(text.c_str(), nullptr, 10) * 1024;
}

// What the container allows (cgroup 2), -1 without a limit.
int64_t memory_limit() {
  std::ifstream stream("/sys/fs/cgroup/memory.max");
  int64_t bytes = -1;
  return stream >> bytes ? bytes : -1;
}

// Cores that this process may run on: in a container or under taskset fewer than there are.
int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return CPU_COUNT(&set);
}

std::string system_name() {
  utsname name{};
  const std::string release = value_in("/etc/os-release", "PRETTY_NAME");
  const std::string kernel =
      uname(&name) == 0 ? std::string(name.sysname) + ' ' + name.release + ' ' + name.machine : "";
  return release.empty() ? or_unknown(kernel) : release + ", " + kernel;
}

std::string locale_name() {
  for (const char* variable : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    const char* value = std::getenv(variable);
    if (value != nullptr && *value != '\0') return value;
  }
  return "C";
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "g++ " __VERSION__;
#endif
}

#ifdef OF_HAVE_CUDA
std::string cuda_version(int version) {
  return fmt::format("CUDA {}.{}", version / 1000, version % 1000 / 10);
}

Finding library_finding(const char* key, const std::string& name, const char* variable) {
  const std::string path = cuda::open_library(name, variable).path;
  if (!path.empty()) return text_finding("gpu", key, path);
  return {"gpu", key, fmt::format("no {} (not needed; {} may name its folder)", name, variable),
          "null"};
}

void examine_gpus(std::vector<Finding>& findings) {
  std::string text, json;
  for (const cuda::Gpu& gpu : cuda::gpus()) {
    const std::string capability = fmt::format("{}.{}", gpu.capability / 10, gpu.capability % 10);
    text +=
        fmt::format("{}{}, compute capability {}, {}, {} free", text.empty() ? "" : "; ", gpu.name,
                    capability, format_bytes(double(gpu.memory)), format_bytes(double(gpu.free)));
    json += (json.empty() ? "" : ", ") + json_object({{"name", json_text(gpu.name)},
                                                      {"compute_capability", json_text(capability)},
                                                      {"memory", std::to_string(gpu.memory)},
                                                      {"free_memory", std::to_string(gpu.free)}});
  }
  const int driver = cuda::driver_version();
  if (text.empty()) text = "none: " + (driver == 0 ? "no driver" : cuda::why_no_gpu());
  findings.push_back({"gpu", "gpus", text, '[' + json + ']'});
  if (driver != 0) findings.push_back(text_finding("gpu", "driver_knows", cuda_version(driver)));
  findings.push_back(text_finding("gpu", "toolkit", cuda_version(cuda::toolkit_version())));
  findings.push_back(library_finding(
      "cublaslt", fmt::format("libcublasLt.so.{}", cuda::toolkit_version() / 1000), "OF_CUBLASLT"));
  findings.push_back(library_finding("cudnn", "libcudnn.so.9", "OF_CUDNN"));
}
#else
void examine_gpus(std::vector<Finding>& findings) {
  findings.push_back(
      text_finding("gpu", "none", "this build is without CUDA (nvcc was not found)"));
}
#endif

std::vector<Finding> examine() {
  std::vector<Finding> findings = {
      text_finding("program", "version", version()),
      text_finding("program", "commit", commit()),
      text_finding("program", "compiler", compiler()),
      text_finding("program", "built_with", built_with()),
      text_finding("machine", "system", system_name()),
      text_finding("machine", "processor", or_unknown(value_in("/proc/cpuinfo", "model name"))),
      text_finding("machine", "instruction_level", cpu::name_of(cpu::isa())),
      text_finding("machine", "best_instruction_level", cpu::name_of(cpu::best_isa())),
      count_finding("machine", "cores", static_cast<int64_t>(std::thread::hardware_concurrency())),
      count_finding("machine", "usable_cores", usable_cores()),
      count_finding("machine", "openmp_threads", cpu::threads()),
      bytes_finding("machine", "memory", meminfo("MemTotal")),
      bytes_finding("machine", "available_memory", meminfo("MemAvailable")),
  };
  if (const int64_t limit = memory_limit(); limit >= 0)
    findings.push_back(bytes_finding("machine", "memory_limit", limit));
  const std::string driver = value_in("/proc/driver/nvidia/version", "NVRM version");
  findings.push_back({"gpu", "driver", driver.empty() ? "none" : driver,
                      driver.empty() ? "null" : json_text(driver)});
  examine_gpus(findings);
  const Device device = device_of(DeviceChoice::automatic);
  findings.push_back(text_finding("compute", "automatic_device", name_of(device)));
  findings.push_back(text_finding("compute", "matrix_products", cpu::matmul_backend()));
  findings.push_back(
      {"compute", "native_bf16", cpu::native_bf16() ? "yes" : "no", json_flag(cpu::native_bf16())});
  findings.push_back(text_finding("compute", "automatic_precision",
                                  name_of(compute_type(Precision::automatic, device))));
  findings.push_back(text_finding("surroundings", "locale", locale_name()));

  std::error_code error;
  const std::filesystem::path folder = std::filesystem::temp_directory_path(error);
  findings.push_back(
      text_finding("surroundings", "temporary_folder", error ? "none" : folder.string()));
  const auto space = error ? std::filesystem::space_info{} : std::filesystem::space(folder, error);
  findings.push_back(bytes_finding("surroundings", "temporary_space_free",
                                   error ? -1 : static_cast<int64_t>(space.available)));
  return findings;
}

std::string as_json(const std::vector<Finding>& findings) {
  std::vector<std::pair<std::string, std::vector<std::pair<std::string, std::string>>>> sections;
  for (const Finding& f : findings) {
    if (sections.empty() || sections.back().first != f.section) sections.push_back({f.section, {}});
    sections.back().second.emplace_back(f.key, f.json);
  }
  std::vector<std::pair<std::string, std::string>> members;
  for (const auto& [section, content] : sections)
    members.emplace_back(section, json_object(content));
  return json_object(members) + "\n";
}

std::string as_text(const std::vector<Finding>& findings) {
  size_t width = 0;
  for (const Finding& f : findings) width = std::max(width, f.key.size());
  std::string out, section;
  for (const Finding& f : findings) {
    if (f.section != section) out += (section.empty() ? "" : "\n") + f.section + '\n';
    section = f.section;
    std::string key = f.key;
    std::replace(key.begin(), key.end(), '_', ' ');
    out += "  " + key + std::string(width + 2 - key.size(), ' ') + f.text + '\n';
  }
  return out;
}

}  // namespace

int doctor_command(const DoctorArguments& options) {
  const std::vector<Finding> findings = examine();
  std::cout << (options.global.json ? as_json(findings) : as_text(findings));
  return 0;
}

}  // namespace orthofed::cli
