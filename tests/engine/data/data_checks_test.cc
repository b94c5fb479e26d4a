#include "engine/data/checks.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "engine/io/dense.h"
#include "engine/io/png.h"
#include "tests/support/files.h"

namespace orthofed {
namespace {

using Names = std::vector<std::string>;

TEST(DataChecks, FindsWhatCrossesSplits) {
  const test::TemporaryDirectory directory;
  const Tensor image = dense_tensor({3, 3, 3}, DType::u8);
  for (uint8_t i = 0; i < 6; ++i) {
    image.fill(i == 4 ? 0 : i);  // 4.png is a copy of 0.png
    save_png(directory / (std::to_string(i) + ".png"), image);
  }
  std::ofstream(directory / "bad.png") << "not an image";
  std::ofstream(directory / "m.csv") << "path,label,client,split,patient\n"
                                        "0.png,a,north,train,p1\n"
                                        "1.png,b,north,train,p1\n"
                                        "1.png,b,north,test,p2\n"
                                        "2.png,b,north,test,p1\n"
                                        "3.png,b,south,test,p1\n"
                                        "4.png,a,south,test,\n"
                                        "5.png,a,south,train,\n"
                                        "bad.png,a,south,train,\n";
  const Dataset d =
      read_manifest(directory / "m.csv", directory.path(),
                    {"path", "label", "client", "split", "patient"}, {{"a", "b", "c"}, {}});
  for (const int64_t workers : {1, 3}) {
    int64_t last = 0;
    const DataReport report = check_data(d, workers, [&](int64_t done, int64_t) { last = done; });
    EXPECT_EQ(last, 8);
    EXPECT_FALSE(report.clean());
    EXPECT_EQ(report.counts.at("north").at("train"), (std::vector<int64_t>{1, 1, 0}));
    EXPECT_EQ(report.counts.at("south").at("train"), (std::vector<int64_t>{2, 0, 0}));
    ASSERT_EQ(report.unreadable.size(), 1U);
    EXPECT_EQ(report.unreadable[0].id, "bad.png");
    ASSERT_EQ(report.samples.size(), 1U);
    EXPECT_EQ(report.samples[0].name, "1.png");
    EXPECT_EQ(report.samples[0].places, (Names{"test: 1.png", "train: 1.png"}));
    // p1 of the north; p1 of the south is another patient.
    ASSERT_EQ(report.groups.size(), 1U);
    EXPECT_EQ(report.groups[0].name, "north: p1");
    EXPECT_EQ(report.groups[0].places, (Names{"test", "train"}));
    ASSERT_EQ(report.duplicates.size(), 1U);
    EXPECT_EQ(report.duplicates[0].places, (Names{"test: 4.png", "train: 0.png"}));
  }
}

TEST(DataChecks, CleanDataIsClean) {
  const Tensor images = dense_tensor({4, 2, 2, 3}, DType::u8);
  for (int64_t i = 0; i < images.size(); ++i) images.data<uint8_t>()[i] = uint8_t(i);
  const Dataset d = make_dataset({{"x", "north", "train", images, {0, 1, 0, 1}}}, {"a", "b"});
  const DataReport report = check_data(d);
  EXPECT_TRUE(report.clean());
  EXPECT_EQ(report.counts.at("north").at("train"), (std::vector<int64_t>{2, 2}));
}

TEST(DataChecks, RealDataIsReadable) {
  const char* root = std::getenv("OF_DATA");
  if (root == nullptr) GTEST_SKIP() << "OF_DATA is not set: no real data to check";
  const std::string folder = std::string(root) + "/wbc_sites";
  const DataReport report = check_data(
      read_manifest(folder + "/manifest.csv", folder, {"path", "label", "site", "split", ""}, {}),
      2);
  EXPECT_TRUE(report.unreadable.empty());
  EXPECT_TRUE(report.samples.empty());
}

}  // namespace
}  // namespace orthofed
