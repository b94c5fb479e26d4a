// scripts/new_kernel.sh: what it writes builds and passes as it stands, in a tree of nothing but
// the kernels' foundations, so that little is compiled.
#include <gtest/gtest.h>

#include "tests/scripts/shell.h"
#include "tests/support/files.h"

namespace orthofed::test {
namespace {

namespace fs = std::filesystem;

class NewKernel : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* folder :
         {"cmake", "kernels/core", "kernels/simt", "tests/support", "bench/support"}) {
      fs::create_directories((root_ / folder));
      fs::copy(fs::path(OF_SOURCE_DIR) / folder, root_ / folder, fs::copy_options::recursive);
    }
    for (const char* file : {"CMakeLists.txt", "kernels/CMakeLists.txt", "tests/CMakeLists.txt",
                             "bench/CMakeLists.txt", "scripts/new_kernel.sh",
                             "scripts/kernels_table.sh", "docs/kernels.md"})
      copy_source(file, root_.path());
    // No other kernel; the other layers are left out where their folders are missing.
    ASSERT_EQ(in_tree("sed -i '/^of_add_kernel/ d' kernels/CMakeLists.txt").status, 0);
  }
  Outcome in_tree(const std::string& command) {
    return shell("cd '" + root_.path() + "' && " + command);
  }

  TemporaryDirectory root_;
};

TEST_F(NewKernel, BuildsAndPasses) {
  Outcome outcome = in_tree("scripts/new_kernel.sh soft_step");
  ASSERT_EQ(outcome.status, 0) << outcome.output;
  EXPECT_EQ(in_tree("grep -c '^| soft_step | forward, backward | soft_step_test | yes |' "
                    "docs/kernels.md")
                .output,
            "1\n");
  outcome = in_tree(
      "cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Debug -DOF_CUDA=OFF -DOF_ONEDNN=OFF "
      "-DOF_WERROR=ON && nice cmake --build build && build/bin/soft_step_test");
  ASSERT_EQ(outcome.status, 0) << outcome.output;
  EXPECT_NE(outcome.output.find("[  PASSED  ] 7 tests."), std::string::npos) << outcome.output;
  if (fs::exists(root_ / "build/bin/soft_step_bench")) {
    outcome = in_tree("build/bin/soft_step_bench --benchmark_filter=odd --seconds 0.001");
    EXPECT_EQ(outcome.status, 0) << outcome.output;
  }
}

TEST_F(NewKernel, RefusesNamesInOneLine) {
  write_file(root_ / "tests/engine/tensor_test.cc", "");
  for (const char* name : {"", "Gelu", "../gelu", "a__b", "a b", "core", "tensor"}) {
    const Outcome outcome = in_tree("scripts/new_kernel.sh '" + std::string(name) + "'");
    EXPECT_EQ(outcome.status, 2) << name;
    EXPECT_EQ(outcome.output.find('\n'), outcome.output.size() - 1) << outcome.output;
  }
  EXPECT_EQ(in_tree("scripts/new_kernel.sh").status, 2);
  EXPECT_EQ(in_tree("grep -c ^of_add_kernel kernels/CMakeLists.txt").output, "0\n");
  EXPECT_FALSE(fs::exists(root_ / "tests/kernels"));
}

}  // namespace
}  // namespace orthofed::test
