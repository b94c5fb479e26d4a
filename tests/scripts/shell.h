// Scripts under test, run by bash as a person runs them, in a tree that the test may spoil.
#pragma once
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

namespace orthofed::test {

struct Outcome {
  int status = -1;
  std::string output;  // both streams
};

inline Outcome shell(const std::string& command) {
  Outcome outcome;
  FILE* pipe = ::popen(("exec 2>&1 </dev/null; " + command).c_str(), "r");
  if (pipe == nullptr) return outcome;
  char text[4096];
  while (const size_t n = std::fread(text, 1, sizeof text, pipe)) outcome.output.append(text, n);
  const int raw = ::pclose(pipe);
  outcome.status = WIFEXITED(raw) ? WEXITSTATUS(raw) : -1;
  return outcome;
}

inline void write_file(const std::filesystem::path& path, const std::string& text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path) << text;
}

// Copies a file of this source tree to the same place below `root`.
inline void copy_source(const std::string& name, const std::filesystem::path& root) {
  std::filesystem::create_directories((root / name).parent_path());
  std::filesystem::copy_file(std::filesystem::path(OF_SOURCE_DIR) / name, root / name);
}

}  // namespace orthofed::test
