#include "engine/data/dataset.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "engine/io/dense.h"
#include "engine/io/files.h"
#include "engine/io/image.h"
#include "engine/io/npz.h"
#include "engine/io/png.h"
#include "tests/support/files.h"

namespace orthofed {
namespace {

using test::TemporaryDirectory;
using test::user_error;

Tensor picture(uint8_t value, int64_t height = 4, int64_t width = 5) {
  const Tensor image = dense_tensor({height, width, 3}, DType::u8);
  image.fill(value);
  return image;
}

class ManifestTest : public testing::Test {
 protected:
  ManifestTest() {
    for (int i = 0; i < 4; ++i) save_png(file(fmt::format("a{}.png", i)), picture(i));
  }
  std::string file(const std::string& name) const { return directory_ / name; }
  Dataset read(const std::string& text, const ClassMap& map = {},
               const ManifestColumns& columns = {}) const {
    std::ofstream(file("m.csv")) << text;
    return read_manifest(file("m.csv"), directory_.path(), columns, map);
  }
  testing::AssertionResult refused(const std::string& text, const ClassMap& map,
                                   std::initializer_list<std::string> parts) const {
    return user_error([&] { read(text, map); }, parts);
  }
  TemporaryDirectory directory_;
};

TEST_F(ManifestTest, ReadsRows) {
  const Dataset d = read(
      "split,path,label,client,patient\n"
      "train,a0.png,mono,north,p1\n"
      "validation,a1.png,eos,north,p2\n"
      "test,a2.png,lymphocyte,south,p3\n",
      {{"eosinophil", "lymphocyte", "monocyte"}, {{"mono", "monocyte"}, {"eos", "eosinophil"}}},
      {"path", "label", "client", "split", "patient"});
  ASSERT_EQ(d.samples.size(), 3U);
  EXPECT_EQ(d.classes, (std::vector<std::string>{"eosinophil", "lymphocyte", "monocyte"}));
  EXPECT_EQ(d.samples[0].id, "a0.png");
  EXPECT_EQ(d.samples[0].label, 2);
  EXPECT_EQ(d.samples[0].client, "north");
  EXPECT_EQ(d.samples[0].split, "train");
  EXPECT_EQ(d.samples[0].group, "p1");
  EXPECT_EQ(d.samples[1].label, 0);
  EXPECT_EQ(d.samples[1].split, "val");
  EXPECT_EQ(d.samples[2].label, 1);
  for (int64_t i = 0; i < 3; ++i)
    EXPECT_EQ(d.source->load(d.samples[size_t(i)].image).data<uint8_t>()[0], i);
  EXPECT_NE(d.source->sha256(0), d.source->sha256(1));
  EXPECT_EQ(clients_of(d), (std::vector<std::string>{"north", "south"}));
}

TEST_F(ManifestTest, ClassesDefaultToTheNamesThatOccur) {
  const Dataset d = read("path,label,client,split\na0.png,b,x,train\na1.png,a,x,train\n");
  EXPECT_EQ(d.classes, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(d.samples[0].label, 1);
}

TEST_F(ManifestTest, ClientAndGroupMayBeAbsent) {
  const Dataset d =
      read("path,label,split\na0.png,b,train\n", {}, {"path", "label", "", "split", ""});
  EXPECT_EQ(d.samples[0].client, "");
}

TEST_F(ManifestTest, FaultsNameTheRowAndTheRemedy) {
  const ClassMap map{{"basophil", "eosinophil"}, {}};
  const std::string head = "path,label,client,split\n";
  const std::string manifest = file("m.csv");
  EXPECT_TRUE(
      refused(head + "a0.png,basofil,x,train\n", map,
              {manifest + " line 2", "'basofil'", "did you mean 'basophil'", "data.labels"}));
  EXPECT_TRUE(
      refused(head + "a0.png,zzz,x,train\n", map, {"'zzz'", "known: basophil, eosinophil"}));
  EXPECT_TRUE(refused(head + "a0.png,basophil,x,trian\n", map,
                      {"line 2", "unknown split 'trian'", "did you mean 'train'"}));
  EXPECT_TRUE(refused(head + "a0.png,basophil,x,\n", map, {"unknown split ''"}));
  EXPECT_TRUE(refused(head + ",basophil,x,train\n", map, {"line 2", "path is empty"}));
  EXPECT_TRUE(refused(head + "a0.png,basophil,x,train\nno.png,basophil,x,train\n", map,
                      {"line 3", file("no.png"), "does not exist", "data.root"}));
  EXPECT_TRUE(refused(head + "n1.png,basophil,x,train\nn2.png,basophil,x,train\n", map,
                      {"line 2", "nor do 1 others"}));
  EXPECT_TRUE(refused(head, map, {"lists no images"}));
  EXPECT_TRUE(refused("path,lable,client,split\n", map,
                      {"no column 'label'", "did you mean 'lable'", "data.columns.label"}));
  EXPECT_TRUE(user_error([&] { read_manifest(file("none.csv"), "", {}, map); },
                         {file("none.csv"), "the manifest"}));
  EXPECT_TRUE(refused(head, {{"a", "a"}, {}}, {"data.classes", "twice"}));
  EXPECT_TRUE(refused(head, {{"basophil"}, {{"x", "basofil"}}},
                      {"data.labels", "'basofil'", "did you mean 'basophil'"}));
}

TEST_F(ManifestTest, SelectsByClientAndSplit) {
  const Dataset d = read(
      "path,label,client,split\na0.png,a,north,train\na1.png,a,south,train\na2.png,a,south,test\n");
  EXPECT_EQ(select(d, "south", "train").samples.size(), 1U);
  EXPECT_EQ(select(d, "south", "").samples.size(), 2U);
  EXPECT_EQ(select(d, "", "train").samples.size(), 2U);
  EXPECT_EQ(select(d, "", "").samples.size(), 3U);
  EXPECT_TRUE(user_error([&] { select(d, "sooth", "train"); },
                         {"client 'sooth' has no images", "did you mean 'south'"}));
  EXPECT_TRUE(user_error([&] { select(d, "north", "test"); }, {"'north' has no test images"}));
  EXPECT_TRUE(user_error([&] { select(d, "", "val"); }, {"no val images"}));
}

TEST(ImageFolder, ReadsClientsSplitsAndClasses) {
  const TemporaryDirectory directory;
  for (const char* path : {"north/train/a/1.png", "north/train/b/2.PNG", "north/test/a/3.png",
                           "south/training/b/4.png"}) {
    const std::string file = directory / path;
    make_directories(file.substr(0, file.rfind('/')));
    save_png(file, picture(7));
  }
  std::ofstream(directory / "north/train/a/notes.txt") << "not an image";
  make_directories(directory / ".cache/train/a");
  const Dataset d = read_image_folder(directory.path(), {});
  ASSERT_EQ(d.samples.size(), 4U);
  EXPECT_EQ(d.classes, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(d.samples[0].id, "north/test/a/3.png");
  EXPECT_EQ(d.samples[0].split, "test");
  EXPECT_EQ(d.samples[2].id, "north/train/b/2.PNG");
  EXPECT_EQ(d.samples[2].label, 1);
  EXPECT_EQ(d.samples[3].client, "south");
  EXPECT_EQ(d.samples[3].split, "train");
  EXPECT_EQ(d.source->load(3).data<uint8_t>()[0], 7);

  EXPECT_TRUE(user_error(
      [&] {
        read_image_folder(directory.path(), {{"a", "c"}, {}});
      },
      {"/north/train/b", "label 'b'"}));
  make_directories(directory / "south/tests/b");
  EXPECT_TRUE(user_error([&] { read_image_folder(directory.path(), {}); },
                         {"unknown split 'tests'", "did you mean 'test'"}));
  EXPECT_TRUE(user_error([&] { read_image_folder(directory / "none", {}); }, {"the image folder"}));
  make_directories(directory / "empty");
  EXPECT_TRUE(
      user_error([&] { read_image_folder(directory / "empty", {}); }, {"CLIENT/SPLIT/CLASS"}));
}

class NpzDatasetTest : public testing::Test {
 protected:
  Dataset read(const TensorMap& arrays, const ClassMap& map = {}) const {
    save_npz(path_, arrays);
    return read_npz_dataset(path_, map);
  }
  static Tensor labels(const std::vector<int32_t>& values) {
    return Tensor::of(values, {int64_t(values.size()), 1});
  }
  static Tensor images(int64_t n, int64_t channels) {
    std::vector<uint8_t> values;
    for (int64_t i = 0; i < n * 2 * 3 * channels; ++i) values.push_back(uint8_t(i));
    return channels == 1 ? Tensor::of(values, {n, 2, 3}) : Tensor::of(values, {n, 2, 3, channels});
  }
  TemporaryDirectory directory_;
  const std::string path_ = directory_ / "x.npz";
};

TEST_F(NpzDatasetTest, ReadsGreyMedMnist) {
  const Dataset d = read({{"train_images", images(3, 1)},
                          {"train_labels", labels({1, 0, 1})},
                          {"test_images", images(1, 1)},
                          {"test_labels", labels({2})}});
  ASSERT_EQ(d.samples.size(), 4U);
  EXPECT_EQ(d.classes, (std::vector<std::string>{"0", "1", "2"}));
  EXPECT_EQ(d.samples[0].id, "test/0");
  EXPECT_EQ(d.samples[0].split, "test");
  EXPECT_EQ(d.samples[2].id, "train/1");
  EXPECT_EQ(d.samples[2].label, 0);
  EXPECT_EQ(d.samples[2].client, "");
  const Tensor image = d.source->load(d.samples[2].image);  // the second of train
  EXPECT_EQ(image.shape(), (Shape{2, 3, 3}));
  EXPECT_EQ(image.to_vector(),
            (std::vector<double>{6, 6, 6, 7, 7, 7, 8, 8, 8, 9, 9, 9, 10, 10, 10, 11, 11, 11}));
  EXPECT_EQ(d.source->sha256(0), d.source->sha256(1));  // both start at 0
  EXPECT_NE(d.source->sha256(0), d.source->sha256(2));
}

TEST_F(NpzDatasetTest, ReadsSitesAndNamedClasses) {
  const ClassMap map{{"benign", "malign"}, {{"5", "malign"}}};
  const Dataset d = read({{"st_mary_train_images", images(2, 3)},
                          {"st_mary_train_labels", labels({0, 5}).to(DType::u8)}},
                         map);
  EXPECT_EQ(d.samples[0].client, "st_mary");
  EXPECT_EQ(d.samples[0].label, 0);
  EXPECT_EQ(d.samples[1].label, 1);
  EXPECT_EQ(d.source->load(1).data<uint8_t>()[0], 18);
}

TEST_F(NpzDatasetTest, FaultsAreNamed) {
  const auto refused = [&](const TensorMap& arrays, const ClassMap& map,
                           std::initializer_list<std::string> parts) {
    return user_error([&] { read(arrays, map); }, parts);
  };
  const Tensor two = images(2, 3);
  EXPECT_TRUE(refused({{"images", two}}, {}, {path_, "<split>_images", "it holds images"}));
  EXPECT_TRUE(refused({{"train_images", two}}, {}, {path_, "no array 'train_labels'"}));
  EXPECT_TRUE(refused({{"trian_images", two}, {"trian_labels", labels({0, 1})}}, {},
                      {"unknown split 'trian'", "'train'"}));
  EXPECT_TRUE(refused({{"train_images", two}, {"train_labels", labels({0})}}, {},
                      {"1 labels for 2 images"}));
  EXPECT_TRUE(
      refused({{"train_images", two}, {"train_labels", labels({0, -1})}}, {}, {"negative"}));
  EXPECT_TRUE(refused({{"train_images", two}, {"train_labels", labels({0, 2000000000})}}, {},
                      {"no class index"}));
  EXPECT_TRUE(refused({{"train_images", two}, {"train_labels", labels({0, 2})}}, {{"a", "b"}, {}},
                      {"'train_labels' row 1", "label '2'"}));
  EXPECT_TRUE(refused({{"train_images", two}, {"train_labels", Tensor::zeros({2}, DType::f32)}}, {},
                      {"f32 [2]", "one integer an image"}));
  EXPECT_TRUE(refused(
      {{"train_images", Tensor::zeros({2, 3}, DType::u8)}, {"train_labels", labels({0, 1})}}, {},
      {"u8 [2, 3]", "expected u8 [N, H, W]"}));
  EXPECT_TRUE(refused({{"train_images", images(2, 2)}, {"train_labels", labels({0, 1})}}, {},
                      {"[2, 2, 3, 2]"}));
}

TEST(DatasetOnRealData, ReadsTheLaboratories) {
  const char* root = std::getenv("OF_DATA");
  if (root == nullptr) GTEST_SKIP() << "OF_DATA is not set: no real data set to read";
  const std::string folder = std::string(root) + "/wbc_sites";
  const Dataset files =
      read_manifest(folder + "/manifest.csv", folder, {"path", "label", "site", "split", ""}, {});
  EXPECT_EQ(files.samples.size(), 1194U);
  EXPECT_EQ(clients_of(files), (std::vector<std::string>{"barcelona_pbc", "bccd", "tecom"}));
  const Dataset arrays = read_npz_dataset(std::string(root) + "/wbc_sites_64.npz", {});
  EXPECT_EQ(arrays.samples.size(), 1194U);
  EXPECT_EQ(clients_of(arrays), clients_of(files));
  const Dataset mnist =
      read_npz_dataset(std::string(root) + "/pneumoniamnist/pneumoniamnist.npz", {});
  EXPECT_EQ(select(mnist, "", "train").samples.size(), 4708U);
}

}  // namespace
}  // namespace orthofed
