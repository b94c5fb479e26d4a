// Against files and pixels made by Pillow: tests/fixtures/make_images.py.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "engine/io/files.h"
#include "engine/io/image.h"
#include "engine/io/npz.h"
#include "engine/io/png.h"
#include "tests/support/files.h"

namespace orthofed {
namespace {

using test::TemporaryDirectory;
using test::user_error;

const std::string kFixture = OF_SOURCE_DIR "/tests/fixtures/images.npz";

std::span<const std::byte> bytes_of(const Tensor& file) {
  return std::as_bytes(std::span(file.data<uint8_t>(), static_cast<size_t>(file.size())));
}

std::vector<std::string> fixture_names() {
  std::vector<std::string> names;
  const NpzFile fixture(kFixture);
  for (const std::string& name : fixture.names())
    if (name.size() > 5 && name.substr(name.size() - 5) == "_file")
      names.push_back(name.substr(0, name.size() - 5));
  return names;
}

TEST(ImageFiles, EqualPillowBitForBit) {
  const NpzFile fixture(kFixture);
  ASSERT_GE(fixture_names().size(), 13U);
  for (const std::string& name : fixture_names()) {
    SCOPED_TRACE(name);
    const Tensor file = fixture.read(name + "_file"), want = fixture.read(name + "_pixels");
    const Tensor got = decode_image(bytes_of(file), name);
    EXPECT_TRUE(got.dense());
    ASSERT_EQ(got.shape(), want.shape());
    int64_t different = 0;
    for (int64_t i = 0; i < got.size(); ++i)
      different += got.data<uint8_t>()[i] != want.data<uint8_t>()[i];
    EXPECT_EQ(different, 0);
  }
}

TEST(ImageFiles, TruncatedFilesAreRefused) {
  const NpzFile fixture(kFixture);
  for (const std::string& name : fixture_names()) {
    const Tensor file = fixture.read(name + "_file");
    const auto whole = bytes_of(file);
    for (size_t n = 0; n + 12 < whole.size(); n += 1 + n / 20) {  // PNG's last chunk is empty
      // A copy of exactly this size, so that AddressSanitizer sees a read beyond its end.
      const std::vector<std::byte> cut(whole.begin(), whole.begin() + static_cast<long>(n));
      EXPECT_TRUE(user_error([&] { decode_image(cut, name); }, {name})) << name << " at " << n;
    }
  }
}

TEST(ImageFiles, DamagedFilesNeverCrash) {
  const NpzFile fixture(kFixture);
  int refused = 0, decoded = 0;
  for (const std::string& name : fixture_names()) {
    const Tensor file = fixture.read(name + "_file");
    for (size_t i = 0; i < static_cast<size_t>(file.size()); i += 1 + i / 16) {
      std::vector<std::byte> damaged(bytes_of(file).begin(), bytes_of(file).end());
      damaged[i] = ~damaged[i];
      try {
        decode_image(damaged, name);
        ++decoded;  // a changed pixel or comment
      } catch (const UserError&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 100);
  EXPECT_GT(decoded, 100);
}

TEST(ImageFiles, WhatIsNoImageIsNamed) {
  const TemporaryDirectory directory;
  write_file(directory / "a.png", "this is text");
  EXPECT_TRUE(user_error([&] { load_image(directory / "a.png"); },
                         {directory / "a.png", "not a readable image", "replace"}));
  write_file(directory / "b.jpg", "\xff\xd8\xff this is text");
  EXPECT_TRUE(user_error([&] { load_image(directory / "b.jpg"); },
                         {directory / "b.jpg", "not a readable JPEG", "replace"}));
  write_file(directory / "c.png", "");
  EXPECT_TRUE(user_error([&] { load_image(directory / "c.png"); }, {"c.png", "is empty"}));
  EXPECT_TRUE(user_error([&] { load_image(directory / "d.png"); }, {"d.png", "check the path"}));
  // A header that claims 13,000 x 14,000 pixels is refused before memory is asked for.
  std::string png("\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x32\xc8\0\0\x36\xb0\x08\x02\0\0\0", 29);
  // Newer stb_image reads on to the first IDAT chunk before it tells the size.
  write_file(directory / "e.png", png + "cccc" + std::string("\0\0\0\x01IDAT", 8));
  EXPECT_TRUE(user_error([&] { load_image(directory / "e.png"); }, {"e.png", "13000 x 14000"}));
}

TEST(ImageFiles, SuffixesAreKnown) {
  EXPECT_TRUE(has_image_suffix("a/b.JPG"));
  EXPECT_TRUE(has_image_suffix("b.jpeg"));
  EXPECT_FALSE(has_image_suffix("b.tif"));
  EXPECT_FALSE(has_image_suffix("jpg"));
  EXPECT_FALSE(has_image_suffix("dir.png/readme"));
}

TEST(ImageFiles, PngRoundTrip) {
  const TemporaryDirectory directory;
  const Tensor want = NpzFile(kFixture).read("png_rgb_pixels");
  save_png(directory / "a.png", want);
  EXPECT_EQ(load_image(directory / "a.png").to_vector(), want.to_vector());
  const Tensor grey = Tensor::view(nullptr, want.raw(), {11, 39, 1}, DType::u8);
  save_png(directory / "b.png", grey);
  const Tensor back = load_image(directory / "b.png");
  ASSERT_EQ(back.shape(), (Shape{11, 39, 3}));
  for (int64_t i = 0; i < grey.size(); ++i)
    ASSERT_EQ(back.data<uint8_t>()[3 * i + 1], want.data<uint8_t>()[i]);
  EXPECT_TRUE(user_error([&] { save_png(directory / "no/a.png", want); }, {"does not exist"}));
}

TEST(ImageFiles, ReadsRealImages) {
  const char* root = std::getenv("OF_DATA");
  if (root == nullptr) GTEST_SKIP() << "OF_DATA is not set: no real images to read";
  const Tensor image =
      load_image(std::string(root) + "/wbc_sites/barcelona_pbc/basophil/BA_124389.jpg");
  EXPECT_EQ(image.shape(), (Shape{363, 360, 3}));
}

}  // namespace
}  // namespace orthofed
