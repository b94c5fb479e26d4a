// scripts/gpu.sh on a machine without a GPU: what it refuses, and, with programs that play
// nvidia-smi, the tests and compute-sanitizer, what it makes of their results.
#include <gtest/gtest.h>

#include "tests/scripts/shell.h"
#include "tests/support/files.h"

namespace orthofed::test {
namespace {

namespace fs = std::filesystem;

class GpuScript : public testing::Test {
 protected:
  void SetUp() override {
    copy_source("scripts/gpu.sh", root_.path());
    write_file(root_ / "MANIFEST.json", "{\n  \"commit\": \"c0ffee\"\n}\n");
  }
  void program(const std::string& path, const std::string& text) {
    write_file(root_ / path, "#!/bin/sh\n" + text + '\n');
    fs::permissions(root_ / path, fs::perms::owner_all);
  }
  // A test as GoogleTest ends one.
  void test_program(const std::string& name, const std::string& summary, int status) {
    write_file(root_ / ("tests/kernels/" + name + ".cc"), "");
    program("build/release/bin/" + name, "[ \"$1\" != --help ] || exit 0; printf '" + summary +
                                             "'; exit " + std::to_string(status));
  }
  void have_gpu() { program("fake/nvidia-smi", "echo 'Fake GPU 80GB, 999.1'"); }
  Outcome gpu(const std::string& arguments) {
    return shell("cd '" + root_.path() + "' && PATH=\"$PWD/fake:/usr/bin:/bin\" scripts/gpu.sh " +
                 arguments);
  }
  std::string file(const std::string& name) { return shell("cat '" + root_ / name + "'").output; }

  TemporaryDirectory root_;
};

testing::AssertionResult contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "'" << part << "' is not in: " << text;
}

TEST_F(GpuScript, SaysInOneLineThatThereIsNoGpu) {
  program("fake/nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9");
  for (const char* stage : {"test", "sanitize", "bench", "peers"}) {
    const Outcome outcome = gpu(stage);
    EXPECT_EQ(outcome.status, 2) << stage;
    EXPECT_EQ(outcome.output, "gpu: no GPU here: NVIDIA-SMI has failed\n");
  }
}

TEST_F(GpuScript, RefusesWhatItDoesNotKnow) {
  EXPECT_EQ(gpu("").status, 2);
  EXPECT_EQ(gpu("tests").output, "gpu: unknown argument 'tests' (see scripts/gpu.sh --help)\n");
  EXPECT_EQ(gpu("test bench").status, 2);
  EXPECT_EQ(gpu("test --out").status, 2);
  EXPECT_EQ(gpu("bundle").output, "gpu: this is a bundle\n");
  EXPECT_EQ(gpu("--help").status, 0);
}

TEST_F(GpuScript, RecordsTestsAndCountsSkipsAsFailures) {
  have_gpu();
  test_program("a_test", "[  PASSED  ] 7 tests.\\n", 0);
  test_program("b_test", "[  PASSED  ] 6 tests.\\n[  SKIPPED ] 1 test, listed below:\\n", 0);
  test_program("c_test", "[  PASSED  ] 5 tests.\\n[  FAILED  ] 2 tests, listed below:\\n", 1);
  test_program("d_test", "Segmentation fault\\n", 139);
  program("build/release/bin/e_bench", "exit 1");
  Outcome outcome = gpu("test --out out");
  EXPECT_EQ(outcome.status, 1);
  EXPECT_TRUE(contains(outcome.output, "test: 1 passed, 3 failed"));
  const std::string records = file("out/test.jsonl");
  EXPECT_TRUE(contains(records,
                       "{\"stage\": \"test\", \"gpu\": \"Fake GPU 80GB\", \"driver\": \"999.1\", "
                       "\"commit\": \"c0ffee\", "
                       "\"command\": \"OF_REQUIRE_GPU=1 build/release/bin/a_test\", \"test\": "
                       "\"a_test\", \"passed\": 7, "
                       "\"failed\": 0, \"skipped\": 0, \"exit\": 0, \"seconds\": "));
  EXPECT_TRUE(contains(records, "\"b_test\", \"passed\": 6, \"failed\": 0, \"skipped\": 1,"));
  EXPECT_TRUE(contains(records, "\"c_test\", \"passed\": 5, \"failed\": 2, \"skipped\": 0,"));
  EXPECT_TRUE(
      contains(records, "\"d_test\", \"passed\": 0, \"failed\": 1, \"skipped\": 0, \"exit\": 139"));
  EXPECT_TRUE(contains(file("out/test.txt"), "=== d_test\nSegmentation fault\n"));
  outcome = gpu("test --out out --only '^a_'");
  EXPECT_EQ(outcome.status, 0) << outcome.output;
  EXPECT_EQ(file("out/test.jsonl").find("b_test"), std::string::npos);
}

TEST_F(GpuScript, ATestBeyondTheStagesTimeFails) {
  have_gpu();
  test_program("a_test", "slow\\n'; sleep 60; printf '", 0);
  const Outcome outcome =
      shell("cd '" + root_.path() +
            "' && OF_GPU_SECONDS=1 PATH=\"$PWD/fake:$PATH\" scripts/gpu.sh test --out out");
  EXPECT_EQ(outcome.status, 1) << outcome.output;
  EXPECT_TRUE(contains(file("out/test.jsonl"), "\"failed\": 1, \"skipped\": 0, \"exit\": 124"));
}

TEST_F(GpuScript, RecordsEachSanitizer) {
  have_gpu();
  test_program("a_test", "", 0);
  Outcome outcome = gpu("sanitize --out out");
  if (outcome.status == 2) {  // where the toolkit is installed there is a real one
    EXPECT_TRUE(contains(outcome.output, "compute-sanitizer is not installed"));
  }
  program(
      "fake/compute-sanitizer",
      "case $2 in racecheck) echo '= RACECHECK SUMMARY: 3 hazards displayed (3 errors)'; exit 9;; "
      "*) echo '= ERROR SUMMARY: 0 errors';; esac");
  outcome = gpu("sanitize --out out");
  EXPECT_EQ(outcome.status, 1);
  EXPECT_TRUE(contains(outcome.output, "sanitize: 3 passed, 1 failed"));
  EXPECT_TRUE(
      contains(file("out/sanitize.jsonl"),
               "\"tool\": \"racecheck\", \"test\": \"a_test\", \"exit\": 9, \"errors\": 3}"));
  EXPECT_TRUE(
      contains(file("out/sanitize.jsonl"),
               "\"tool\": \"synccheck\", \"test\": \"a_test\", \"exit\": 0, \"errors\": 0}"));
}

TEST_F(GpuScript, RecordsBenchmarks) {
  have_gpu();
  program("build/release/bin/a_bench",
          "case $1 in --benchmark_list_tests) echo f/cuda/8; exit;; esac\n"
          "echo 'name,iterations,real_time,cpu_time,time_unit,label,error_occurred,\"GB/s\"'\n"
          "echo 'peer missing: cuDNN (OF_CUDNN can name its folder)' >&2\n"
          "echo '\"f/cuda/8\",100,1.25e+01,13,us,,,3900.5'");
  program("build/release/bin/b_bench", "echo g/cpu/8");
  const Outcome outcome = gpu("bench --out out");
  EXPECT_EQ(outcome.status, 0) << outcome.output;
  EXPECT_TRUE(contains(file("out/bench.jsonl"),
                       "\"name\": \"f/cuda/8\", \"iterations\": 100, \"real_time\": 1.25e+01, "
                       "\"time_unit\": \"us\", \"GB/s\": 3900.5, "));
  EXPECT_TRUE(contains(outcome.output, "peer missing: cuDNN"));
  EXPECT_TRUE(
      contains(file("out/bench.jsonl"), "\"missing\": \"cuDNN (OF_CUDNN can name its folder)\"}"));
  EXPECT_EQ(file("out/bench.jsonl").find("b_bench"), std::string::npos);
  EXPECT_EQ(gpu("bench --only b_bench").status, 2);  // nothing was measured
}

}  // namespace
}  // namespace orthofed::test
