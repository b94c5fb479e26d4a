// The program itself, as a process: exit statuses, streams, and what it prints.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "cli/version.h"
#include "models/config/keys.h"

namespace orthofed {
namespace {

namespace fs = std::filesystem;

struct Outcome {
  int status = -1;
  std::string out, err;
};

std::string read(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

// `arguments` go through the shell.
Outcome orthofed_process(const std::string& arguments, const std::string& environment = "") {
  const fs::path base =
      fs::temp_directory_path() / ("orthofed-process-" + std::to_string(getpid()));
  const std::string out = base.string() + ".out", err = base.string() + ".err";
  const std::string command = environment + " " OF_BINARY_DIR "/bin/orthofed " + arguments + " >" +
                              out + " 2>" + err + " </dev/null";
  const int code = std::system(command.c_str());
  const Outcome outcome{WIFEXITED(code) ? WEXITSTATUS(code) : -1, read(out), read(err)};
  fs::remove(out);
  fs::remove(err);
  return outcome;
}

TEST(Orthofed, Help) {
  const Outcome help = orthofed_process("--help");
  EXPECT_EQ(help.status, 0);
  EXPECT_NE(help.out.find("doctor"), std::string::npos);
  EXPECT_EQ(help.err, "");
}

TEST(Orthofed, Version) {
  const Outcome version = orthofed_process("--version");
  EXPECT_EQ(version.status, 0);
  EXPECT_EQ(version.out, cli::version_text() + "\n");
}

TEST(Orthofed, UserErrorsExitWithTwoAndOneLine) {
  for (const char* arguments : {"", "docter", "doctor --jsn", "config nothing_like_this"}) {
    const Outcome outcome = orthofed_process(arguments);
    EXPECT_EQ(outcome.status, 2) << arguments;
    EXPECT_EQ(outcome.out, "") << arguments;
    EXPECT_EQ(outcome.err.rfind("orthofed: ", 0), 0u) << outcome.err;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  }
  const Outcome outcome = orthofed_process("doctor", "OF_ISA=v9");
  EXPECT_EQ(outcome.status, 2);
  EXPECT_NE(outcome.err.find("OF_ISA=v9"), std::string::npos) << outcome.err;
}

TEST(Orthofed, Doctor) {
  const Outcome text = orthofed_process("doctor");
  EXPECT_EQ(text.status, 0) << text.err;
  for (const char* part : {"processor", "instruction level", "matrix products", "automatic device",
                           "automatic precision", "temporary folder"})
    EXPECT_NE(text.out.find(part), std::string::npos) << part;

  const Outcome json = orthofed_process("doctor --json", "OF_ISA=v2");
  ASSERT_EQ(json.status, 0) << json.err;
  const auto report = nlohmann::json::parse(json.out);
  EXPECT_EQ(report.at("program").at("commit"), cli::commit());
  EXPECT_GE(report.at("machine").at("usable_cores").get<int>(), 1);
  EXPECT_GT(report.at("machine").at("memory").get<int64_t>(), int64_t{1} << 20);
#if defined(__x86_64__)
  EXPECT_EQ(report.at("machine").at("instruction_level"), "x86-64-v2");
#endif
  // A build without device cuda has nothing to ask for GPUs.
  const bool gpu = report.at("gpu").contains("gpus") && !report.at("gpu").at("gpus").empty();
  EXPECT_TRUE(report.at("gpu").contains("driver"));
  EXPECT_EQ(report.at("compute").at("automatic_device"), gpu ? "cuda" : "cpu");
  EXPECT_EQ(report.at("compute").at("automatic_precision"),
            gpu || report.at("compute").at("native_bf16").get<bool>() ? "bf16" : "f32");
}

TEST(Orthofed, ConfigKeys) {
  EXPECT_EQ(orthofed_process("config --markdown").out, config_markdown());
  const auto keys = nlohmann::json::parse(orthofed_process("config --json").out);
  EXPECT_EQ(keys.size(), config_keys().size());
}

TEST(Orthofed, AnInterruptExitsWith130) {
  // Opening a pipe that nobody writes to keeps the program waiting.
  const fs::path pipe =
      fs::temp_directory_path() / ("orthofed-pipe-" + std::to_string(getpid()) + ".toml");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const std::string command = "timeout --preserve-status -s INT 0.5 " OF_BINARY_DIR
                              "/bin/orthofed train " +
                              pipe.string() + " --out " + pipe.string() + ".out 2>/dev/null";
  const int code = std::system(command.c_str());
  fs::remove(pipe);
  EXPECT_EQ(WEXITSTATUS(code), 130);
}

TEST(Orthofed, AFullDiskIsNoSuccess) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "there is no /dev/full";
  const int code =
      std::system(OF_BINARY_DIR "/bin/orthofed config >/dev/full 2>/dev/null </dev/null");
  EXPECT_EQ(WEXITSTATUS(code), 1);
}

}  // namespace
}  // namespace orthofed
