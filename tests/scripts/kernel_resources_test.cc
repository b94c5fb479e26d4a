// The table of registers and spills, made from logs as ptxas writes them.
#include <gtest/gtest.h>

#include "tests/scripts/shell.h"
#include "tests/support/files.h"

namespace orthofed::test {
namespace {

// What ptxas says of x's kernel<float, 4> with the given spill.
std::string log(int spill) {
  const std::string kernel =
      "_ZN8orthofed3gpu42_GLOBAL__N__a8abcf44_4_x_cu_0363a5b2_15035"
      "12scale_kernelIfLi4EEEvPKT_lPf";
  return "ptxas info    : 0 bytes gmem\n"
         "ptxas info    : Compiling entry function '" +
         kernel + "' for 'sm_80'\nptxas info    : Function properties for " + kernel +
         "\n    16 bytes stack frame, " + std::to_string(spill) + " bytes spill stores, " +
         std::to_string(spill / 2) +
         " bytes spill loads\n"
         "ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 400 bytes cmem[0]\n";
}

class KernelResources : public testing::Test {
 protected:
  void SetUp() override {
    copy_source("scripts/kernel_resources.sh", root_.path());
    write_file(root_ / "kernels/x/x.cu", "__global__ void scale_kernel(float* x) {}\n");
  }
  void log_is(const std::string& text) {
    write_file(root_ / "build/release/kernels/CMakeFiles/of_kernels_cuda.dir/x/x.cu.o.ptxas", text);
  }
  Outcome run() { return shell(root_ / "scripts/kernel_resources.sh"); }
  std::string table() {
    std::ifstream stream(root_ / "build/release/kernel_resources.txt");
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  TemporaryDirectory root_;
};

TEST_F(KernelResources, AreTabulated) {
  log_is(log(0));
  const Outcome outcome = run();
  EXPECT_EQ(outcome.status, 0) << outcome.output;
  EXPECT_EQ(table(),
            "folder  kernel                  arch   registers  spill  stack  shared\n"
            "x       scale_kernel<float, 4>  sm_80         40      0     16    2048\n");
}

TEST_F(KernelResources, SpillsFail) {
  log_is(log(8));
  const Outcome outcome = run();
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(
      outcome.output.find("scale_kernel<float, 4> of kernels/x/x.cu spills 12 bytes on sm_80"),
      std::string::npos)
      << outcome.output;
}

// The line speaks of the kernel below it, wherever in the folder that is, and of no other.
TEST_F(KernelResources, SpillsMayBeAccountedFor) {
  log_is(log(8));
  const std::string excuse = "// spills: outside the loop\ntemplate <class T>\n";
  write_file(root_ / "kernels/x/x.cu", excuse + "__global__ void other_kernel() {}\n");
  EXPECT_EQ(run().status, 1);
  write_file(root_ / "kernels/x/x.cu", excuse + "\n__global__ void scale_kernel() {}\n");
  EXPECT_EQ(run().status, 1);
  write_file(root_ / "kernels/x/01_a.cuh",
             excuse + "__global__ void __launch_bounds__(32 * 4)\n    scale_kernel() {}\n");
  const Outcome outcome = run();
  EXPECT_EQ(outcome.status, 0) << outcome.output;
}

TEST_F(KernelResources, WithoutALogOrABuild) {
  EXPECT_EQ(run().status, 2);
  log_is("");
  const Outcome outcome = run();
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.output.find("no log of kernels/x/x.cu"), std::string::npos) << outcome.output;
}

}  // namespace
}  // namespace orthofed::test
