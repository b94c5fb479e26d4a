// The lists and the table of docs/kernels.md are made from a small tree.
#include <gtest/gtest.h>

#include "tests/scripts/shell.h"
#include "tests/support/files.h"

namespace orthofed::test {
namespace {

class KernelsTable : public testing::Test {
 protected:
  void SetUp() override {
    copy_source("scripts/kernels_table.sh", root_.path());
    write_file(root_ / "docs/kernels.md",
               "# By hand\n<!-- written by scripts/kernels_table.sh -->\nstale\n");
    write_file(root_ / "kernels/core/core.h", "// Not a kernel.\n");
    write_file(
        root_ / "kernels/sum/sum.h",
        "// Sums |x| (A. Bee, eq. 1):\n//   y = |x|.  More is not said.\n//\n// Never this.\n"
        "namespace orthofed::cpu {\ntemplate <class T>\nvoid sum_host(T* x);\n}\n"
        "namespace orthofed::gpu {\ntemplate <class T>\nvoid sum_forward(T* x);\nvoid "
        "other(int);\n}\n");
    write_file(root_ / "tests/kernels/sum_test.cc",
               "#include \"kernels/sum/sum.h\"\nfor_each_device<T>();\n");
    write_file(root_ / "tests/models/vit/block_test.cc", "#include \"kernels/sum/sum.h\"\n");
  }
  std::string page() {
    const Outcome outcome = shell(root_ / "scripts/kernels_table.sh");
    EXPECT_EQ(outcome.status, 0) << outcome.output;
    return shell("cat " + (root_ / "docs/kernels.md")).output;
  }
  bool holds(const std::string& line) {
    const std::string text = page();
    const bool found = text.find('\n' + line + '\n') != std::string::npos;
    if (!found) ADD_FAILURE() << line << "\nis not in\n" << text;
    return found;
  }

  TemporaryDirectory root_;
};

TEST_F(KernelsTable, HoldsWhatTheTreeHolds) {
  const std::string what = "| sum | forward, other | sum_test, block_test | ";
  EXPECT_EQ(page().rfind("# By hand\n<!-- written by scripts/kernels_table.sh -->\n\n- [sum]", 0),
            0u);
  EXPECT_EQ(page().find("stale"), std::string::npos);
  holds("- [sum](../kernels/sum/sum.h): Sums |x| (A. Bee, eq. 1): y = |x|.");
  holds(what + " |  |");  // no CUDA source
  write_file(root_ / "kernels/sum/sum.cu", "");
  holds(what + "yes |  |");
  write_file(root_ / "kernels/sum/02_warp.cuh",
             "// 2, warp: fewer barriers, because lanes shuffle. Else.\n");
  holds("- sum [2, warp](../kernels/sum/02_warp.cuh): fewer barriers, because lanes shuffle.");
  write_file(root_ / "kernels/sum/02_warp.cuh",
             "// 2, warp: clusters.\n//\n// GPU only: it has clusters.\n");
  holds("- sum [2, warp](../kernels/sum/02_warp.cuh) (cuda only): clusters.");
}

TEST_F(KernelsTable, BreaksALongSentence) {
  const std::string word(57, 'a');
  write_file(root_ / "kernels/sum/sum.h", "// " + word + " " + word + "\n// end.\n");
  holds("- [sum](../kernels/sum/sum.h): " + word + "\n  " + word + " end.");
}

TEST_F(KernelsTable, CountsNoRunThatFailedOrSkipped) {
  const auto record = [](const std::string& gpu, const std::string& rest) {
    return "{\"stage\": \"test\", \"gpu\": \"" + gpu +
           "\", \"driver\": \"1\", \"commit\": \"c0ffee\", \"command\": \"x\", \"test\": " + rest +
           "}\n";
  };
  write_file(
      root_ / "bench/results/gpu-a/test.jsonl",
      record("A", "\"sum_test\", \"passed\": 3, \"failed\": 0, \"skipped\": 0, \"seconds\": 1") +
          record("B",
                 "\"sum_test\", \"passed\": 3, \"failed\": 1, \"skipped\": 0, \"seconds\": 1") +
          record("C",
                 "\"sum_test\", \"passed\": 3, \"failed\": 0, \"skipped\": 1, \"seconds\": 1") +
          record("D",
                 "\"my_sum_test\", \"passed\": 3, \"failed\": 0, \"skipped\": 0, \"seconds\": 1"));
  holds("| sum | forward, other | sum_test, block_test |  | A at c0ffee |");
}

TEST_F(KernelsTable, CheckFindsAStalePage) {
  const std::string check = root_ / "scripts/kernels_table.sh --check";
  EXPECT_EQ(shell(check).status, 1);
  page();
  EXPECT_EQ(shell(check).status, 0);
  write_file(root_ / "kernels/sum/sum.h", "// Another contract.\n");
  const Outcome outcome = shell(check);
  EXPECT_EQ(outcome.status, 1);
  EXPECT_NE(outcome.output.find("run scripts/kernels_table.sh"), std::string::npos);
}

}  // namespace
}  // namespace orthofed::test
