#include "cli/arguments.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <new>
#include <sstream>
#include <string>
#include <vector>

#include "cli/version.h"
#include "kernels/core/check.h"

namespace orthofed::cli {
namespace {

using Strings = std::vector<std::string>;

struct Outcome {
  int status;
  std::string out, err;
};

Outcome call(const Commands& commands, const Strings& words) {
  std::vector<const char*> argv = {"orthofed"};
  for (const std::string& word : words) argv.push_back(word.c_str());
  std::ostringstream out, err;
  const int status =
      run_command_line(static_cast<int>(argv.size()), argv.data(), commands, out, err);
  return {status, out.str(), err.str()};
}

// Bodies that keep what they were told.
template <class Options>
struct Told {
  static inline Options options;
  static int body(const Options& o) {
    options = o;
    return 0;
  }
};

Commands all_commands() {
  Commands c;
  c.run = Told<RunArguments>::body;
  c.serve = Told<ServeArguments>::body;
  c.join = Told<JoinArguments>::body;
  c.train = Told<TrainArguments>::body;
  c.eval = Told<EvalArguments>::body;
  c.predict = Told<PredictArguments>::body;
  c.check = Told<CheckArguments>::body;
  c.doctor = Told<DoctorArguments>::body;
  c.config = Told<ConfigArguments>::body;
  return c;
}

TEST(Arguments, OptionsReachTheirStructs) {
  const Commands c = all_commands();
  ASSERT_EQ(
      call(c, {"run", "a.toml", "--set", "x=1", "--out", "o", "--set", "y=a b", "--in-process"})
          .status,
      0);
  const RunArguments& run = Told<RunArguments>::options;
  EXPECT_EQ(run.config, "a.toml");
  EXPECT_EQ(run.set, (Strings{"x=1", "y=a b"}));
  EXPECT_EQ(run.out, "o");
  EXPECT_TRUE(run.in_process);
  EXPECT_FALSE(run.global.quiet || run.global.json);
  EXPECT_EQ(run.profile, 0);

  // One --set takes one value: what follows is the configuration.
  ASSERT_EQ(call(c, {"run", "--set", "x=1", "a.toml", "--out", "o"}).status, 0);
  EXPECT_EQ(Told<RunArguments>::options.config, "a.toml");
  EXPECT_FALSE(Told<RunArguments>::options.in_process);

  ASSERT_EQ(call(c, {"serve", "a.toml", "--out=o", "-q"}).status, 0);
  EXPECT_EQ(Told<ServeArguments>::options.out, "o");
  EXPECT_TRUE(Told<ServeArguments>::options.global.quiet);

  ASSERT_EQ(call(c, {"run", "a.toml", "--out", "o", "--profile"}).status, 0);
  EXPECT_EQ(Told<RunArguments>::options.profile, 5);
  ASSERT_EQ(call(c, {"join", "a.toml", "--client", "bccd", "--profile=7"}).status, 0);
  EXPECT_EQ(Told<JoinArguments>::options.profile, 7);
  EXPECT_EQ(call(c, {"join", "a.toml", "--client", "bccd", "--profile=0"}).status, 2);
  EXPECT_EQ(call(c, {"join", "a.toml", "--client", "bccd", "--profile=1001"}).status, 2);

  ASSERT_EQ(call(c, {"--json", "join", "a.toml", "--client", "bccd"}).status, 0);
  EXPECT_EQ(Told<JoinArguments>::options.client, "bccd");
  EXPECT_EQ(Told<JoinArguments>::options.out, "");
  EXPECT_TRUE(Told<JoinArguments>::options.global.json);

  ASSERT_EQ(call(c, {"train", "a.toml", "--out", "o"}).status, 0);
  EXPECT_EQ(Told<TrainArguments>::options.config, "a.toml");

  ASSERT_EQ(
      call(c, {"eval", "a.toml", "--adapter", "g", "p", "--adapter", "q", "--client", "x"}).status,
      0);
  EXPECT_EQ(Told<EvalArguments>::options.adapters, (Strings{"g", "p", "q"}));
  EXPECT_EQ(Told<EvalArguments>::options.client, "x");

  ASSERT_EQ(call(c, {"predict",
                     "--weights",
                     "w",
                     "--input",
                     "a.png",
                     "b.png",
                     "--output",
                     "y",
                     "--adapter",
                     "g",
                     "--csv",
                     "f.csv",
                     "--config",
                     "c.json",
                     "--precision",
                     "bf16",
                     "--frozen-precision",
                     "fp8",
                     "--device",
                     "cpu"})
                .status,
            0);
  const PredictArguments& predict = Told<PredictArguments>::options;
  EXPECT_EQ(predict.weights, "w");
  EXPECT_EQ(predict.input, (Strings{"a.png", "b.png"}));
  EXPECT_EQ(predict.output, "y");
  EXPECT_EQ(predict.adapters, Strings{"g"});
  EXPECT_EQ(predict.csv, "f.csv");
  EXPECT_EQ(predict.config, "c.json");
  EXPECT_EQ(predict.precision, Precision::bf16);
  EXPECT_EQ(predict.frozen_precision, FrozenPrecision::fp8);
  EXPECT_EQ(predict.device, DeviceChoice::cpu);

  ASSERT_EQ(call(c, {"check", "a.toml"}).status, 0);
  EXPECT_EQ(Told<CheckArguments>::options.client, "");

  ASSERT_EQ(call(c, {"config", "train", "--markdown"}).status, 0);
  EXPECT_EQ(Told<ConfigArguments>::options.section, "train");
  EXPECT_TRUE(Told<ConfigArguments>::options.markdown);
}

TEST(Arguments, EveryCommandHasHelpWithAnExample) {
  const Commands c = all_commands();
  for (const char* name :
       {"run", "serve", "join", "train", "eval", "predict", "check", "doctor", "config"}) {
    const Outcome help = call(c, {name, "--help"});
    EXPECT_EQ(help.status, 0) << name;
    EXPECT_NE(help.out.find("Example:\n  orthofed " + std::string(name)), std::string::npos)
        << help.out;
    EXPECT_NE(help.out.find("Usage: orthofed " + std::string(name)), std::string::npos) << help.out;
    EXPECT_EQ(help.err, "");
    EXPECT_NE(call(c, {"--help"}).out.find(name), std::string::npos);
  }
  EXPECT_EQ(call(c, {"--version"}).out, version_text() + "\n");
}

TEST(Arguments, WhatHasNoBodyIsNotOffered) {
  Commands c;
  c.doctor = Told<DoctorArguments>::body;
  EXPECT_EQ(call(c, {"run", "a.toml", "--out", "o"}).status, 2);
  EXPECT_EQ(call(c, {"--help"}).out.find("federation"), std::string::npos);
}

TEST(Arguments, BadWordsNameTheNearest) {
  const Commands c = all_commands();
  const auto error = [&](const Strings& words) {
    const Outcome outcome = call(c, words);
    EXPECT_EQ(outcome.status, 2) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    return outcome.err;
  };
  EXPECT_EQ(error({"trian", "a.toml"}),
            "orthofed: unknown command 'trian'; did you mean 'train'?\n");
  EXPECT_EQ(error({"run", "a.toml", "--out", "o", "--in-proces"}),
            "orthofed: unknown option '--in-proces'; did you mean '--in-process'?\n");
  EXPECT_EQ(error({"run", "a.toml", "--outt=o"}),
            "orthofed: unknown option '--outt'; did you mean '--out'?\n");
  EXPECT_EQ(error({"--jsn", "doctor"}),
            "orthofed: unknown option '--jsn'; did you mean '--json'?\n");
  EXPECT_EQ(error({"doctor", "--frobnicate"}),
            "orthofed: unknown option '--frobnicate'; orthofed doctor --help lists them\n");
  EXPECT_EQ(error({}), "orthofed: no command given; orthofed --help lists them\n");
  EXPECT_NE(error({"run", "a.toml"}).find("--out is required"), std::string::npos);
  EXPECT_NE(error({"run", "--out", "o"}).find("CONFIG is required"), std::string::npos);
  EXPECT_NE(error({"run", "a.toml", "--out"}).find("--out"), std::string::npos);
  EXPECT_NE(error({"run", "a.toml", "--out", "o", "b.toml"}).find("b.toml"), std::string::npos);
  EXPECT_NE(
      error({"predict", "--weights", "w", "--input", "x", "--output", "y", "--precision", "f16"})
          .find("f16"),
      std::string::npos);
}

TEST(Arguments, ExceptionsBecomeExitStatuses) {
  Commands c;
  c.doctor = [](const DoctorArguments&) -> int { throw UserError("a.toml: no"); };
  EXPECT_EQ(call(c, {"doctor"}).status, 2);
  EXPECT_EQ(call(c, {"doctor"}).err, "orthofed: a.toml: no\n");
  EXPECT_EQ(call(c, {"doctor", "--json"}).err,
            "{\"event\": \"error\", \"text\": \"a.toml: no\", \"exit_status\": 2}\n");
  c.doctor = [](const DoctorArguments&) -> int { throw Error("two\nlines"); };
  EXPECT_EQ(call(c, {"doctor"}).status, 1);
  EXPECT_EQ(call(c, {"doctor"}).err, "orthofed: two lines\n");
  c.doctor = [](const DoctorArguments&) -> int { throw std::bad_alloc(); };
  EXPECT_EQ(call(c, {"doctor"}).err, "orthofed: out of memory\n");
  c.doctor = [](const DoctorArguments&) { return 7; };
  EXPECT_EQ(call(c, {"doctor"}).status, 7);
  // Errors of parsing are JSON too.
  EXPECT_EQ(call(c, {"dctor", "--json"}).err.rfind("{\"event\": \"error\"", 0), 0u);
}

}  // namespace
}  // namespace orthofed::cli
