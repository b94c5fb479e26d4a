// Against Pillow and torchvision: tests/fixtures/make_images.py.
#include "engine/io/resize.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdio>

#include "engine/io/dense.h"
#include "engine/io/npz.h"
#include "kernels/core/check.h"
#include "tests/support/isa.h"

namespace orthofed {
namespace {

const std::string kFixture = OF_SOURCE_DIR "/tests/fixtures/images.npz";

testing::AssertionResult equal(const Tensor& got, const Tensor& want) {
  if (!(got.shape() == want.shape()))
    return testing::AssertionFailure() << got.shape().str() << " and " << want.shape().str();
  for (int64_t i = 0; i < got.size(); ++i)
    if (got.data<uint8_t>()[i] != want.data<uint8_t>()[i])
      return testing::AssertionFailure() << "byte " << i << ": " << int(got.data<uint8_t>()[i])
                                         << ", want " << int(want.data<uint8_t>()[i]);
  return testing::AssertionSuccess();
}

TEST(Resize, EqualsPillowBitForBit) {
  const NpzFile fixture(kFixture);
  const Tensor source = fixture.read("source");
  int compared = 0;
  test::for_each_isa([&] {
    for (const std::string& name : fixture.names()) {
      long height = 0, width = 0;
      char filter[16];
      if (std::sscanf(name.c_str(), "resize_%15[a-z]_%ldx%ld", filter, &height, &width) != 3)
        continue;
      SCOPED_TRACE(name);
      const auto interpolation =
          std::string(filter) == "bicubic" ? Interpolation::bicubic : Interpolation::bilinear;
      EXPECT_TRUE(equal(resize(source, height, width, interpolation), fixture.read(name)));
      ++compared;
    }
  });
  EXPECT_GE(compared, 12);
}

TEST(Resize, SquaresEqualTorchvision) {
  const NpzFile fixture(kFixture);
  const Tensor source = fixture.read("source");
  int compared = 0;
  for (const std::string& name : fixture.names()) {
    long size = 0, percent = 0;
    if (std::sscanf(name.c_str(), "square_%ld_%ld", &size, &percent) != 2) continue;
    SCOPED_TRACE(name);
    EXPECT_TRUE(equal(resize_to_square(source, size, double(percent) / 100, Interpolation::bicubic),
                      fixture.read(name)));
    ++compared;
  }
  EXPECT_EQ(compared, 4);
}

TEST(Resize, ConstantImagesStayConstant) {
  for (const uint8_t value : {0, 1, 128, 254, 255})
    for (const auto& [h, w, height, width] :
         {std::array<int64_t, 4>{1, 1, 5, 7}, {300, 2, 3, 400}, {17, 31, 16, 32}, {64, 64, 1, 1}})
      for (const auto interpolation : {Interpolation::bilinear, Interpolation::bicubic}) {
        const Tensor image = dense_tensor({h, w, 3}, DType::u8);
        image.fill(value);
        const Tensor out = resize(image, height, width, interpolation);
        ASSERT_EQ(out.shape(), (Shape{height, width, 3}));
        for (int64_t i = 0; i < out.size(); ++i) ASSERT_EQ(out.data<uint8_t>()[i], value);
      }
}

TEST(Resize, BrokenContractsAreRefused) {
  const Tensor image = dense_tensor({4, 4, 3}, DType::u8);
  EXPECT_THROW(resize(Tensor::zeros({4, 4, 3}, DType::u8), 2, 2, Interpolation::bilinear), Error)
      << "rows of an image have no padding";
  EXPECT_THROW(resize(image, 0, 2, Interpolation::bilinear), Error);
  EXPECT_THROW(centre_crop(image, 5, 4), Error);
  EXPECT_THROW(resize_to_square(image, 4, 0, Interpolation::bilinear), Error);
}

}  // namespace
}  // namespace orthofed
