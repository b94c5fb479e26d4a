#include "kernels/image/image.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/buffer.h"
#include "tests/support/compare.h"
#include "tests/support/isa.h"
#include "tests/support/random.h"

namespace orthofed {
namespace {

using test::Buffer;

constexpr float kMean[3] = {0.485F, 0.456F, 0.406F}, kStd[3] = {0.229F, 0.224F, 0.225F};

// An image in double, one step after the other.
struct Picture {
  int64_t height, width;
  std::vector<double> values;  // [height, width, 3]
  Picture(int64_t h, int64_t w) : height(h), width(w), values(size_t(h * w * 3)) {}
  double& at(int64_t y, int64_t x, int64_t c) { return values[size_t((y * width + x) * 3 + c)]; }
  double at(int64_t y, int64_t x, int64_t c) const {
    return values[size_t((y * width + x) * 3 + c)];
  }
};

double grey(const Picture& p, int64_t y, int64_t x) {
  return 0.299 * p.at(y, x, 0) + 0.587 * p.at(y, x, 1) + 0.114 * p.at(y, x, 2);
}

double mean_grey(const Picture& p) {
  double sum = 0;
  for (int64_t y = 0; y < p.height; ++y)
    for (int64_t x = 0; x < p.width; ++x) sum += grey(p, y, x);
  return sum / double(p.height * p.width);
}

template <class F>
Picture mapped(int64_t height, int64_t width, F&& value) {
  Picture out(height, width);
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x)
      for (int64_t c = 0; c < 3; ++c) out.at(y, x, c) = value(y, x, c);
  return out;
}

Picture reference(const Picture& source, const ImageAugment& a, int64_t size) {
  const double mean = mean_grey(source);
  // Crop and resample.
  const bool whole = a.crop_x == 0 && a.crop_y == 0 && a.crop_w == 1 && a.crop_h == 1 &&
                     source.height == size && source.width == size;
  Picture p = mapped(size, size, [&](int64_t y, int64_t x, int64_t c) {
    if (whole) return source.at(y, x, c);
    const double sy =
        (a.crop_y + (double(y) + 0.5) / double(size) * a.crop_h) * double(source.height) - 0.5;
    const double sx =
        (a.crop_x + (double(x) + 0.5) / double(size) * a.crop_w) * double(source.width) - 0.5;
    double sum = 0;
    for (int dy = 0; dy < 2; ++dy)
      for (int dx = 0; dx < 2; ++dx) {
        const double weight =
            (1 - std::abs(sy - (std::floor(sy) + dy))) * (1 - std::abs(sx - (std::floor(sx) + dx)));
        const auto py = std::clamp(int64_t(std::floor(sy)) + dy, int64_t{0}, source.height - 1);
        const auto px = std::clamp(int64_t(std::floor(sx)) + dx, int64_t{0}, source.width - 1);
        sum += weight * source.at(py, px, c);
      }
    return sum;
  });
  auto step = [&](auto&& value) { p = mapped(size, size, value); };
  if (a.flip_horizontal)
    step([&](int64_t y, int64_t x, int64_t c) { return p.at(y, size - 1 - x, c); });
  if (a.flip_vertical)
    step([&](int64_t y, int64_t x, int64_t c) { return p.at(size - 1 - y, x, c); });
  // Counter-clockwise: the right column becomes the top row.
  for (int turn = 0; turn < ((a.quarter_turns % 4) + 4) % 4; ++turn)
    step([&](int64_t y, int64_t x, int64_t c) { return p.at(x, size - 1 - y, c); });
  step([&](int64_t y, int64_t x, int64_t c) { return a.brightness * p.at(y, x, c); });
  step([&](int64_t y, int64_t x, int64_t c) {
    const double m = a.brightness * mean;
    return m + a.contrast * (p.at(y, x, c) - m);
  });
  step([&](int64_t y, int64_t x, int64_t c) {
    const double g = grey(p, y, x);
    return g + a.saturation * (p.at(y, x, c) - g);
  });
  step([&](int64_t y, int64_t x, int64_t c) { return a.channel[c] * p.at(y, x, c); });
  step([&](int64_t y, int64_t x, int64_t c) {
    return (p.at(y, x, c) - double(kMean[c])) / double(kStd[c]);
  });
  return p;
}

std::vector<ImageAugment> draws() {
  std::vector<ImageAugment> list(1);  // the identity
  for (int turns = -1; turns < 5; ++turns)
    for (int flips = 0; flips < 4; ++flips) {
      ImageAugment a;
      a.quarter_turns = turns;
      a.flip_horizontal = flips % 2 == 1;
      a.flip_vertical = flips / 2 == 1;
      list.push_back(a);
    }
  ImageAugment crop;
  crop.crop_x = 0.11F, crop.crop_y = 0.23F, crop.crop_w = 0.71F, crop.crop_h = 0.5F;
  list.push_back(crop);
  crop.quarter_turns = 3, crop.flip_vertical = true;
  list.push_back(crop);
  ImageAugment colour;
  colour.brightness = 1.3F;
  list.push_back(colour);
  colour.contrast = 0.6F;
  list.push_back(colour);
  colour.channel[0] = 0.8F, colour.channel[2] = 1.2F;
  list.push_back(colour);
  colour.saturation = 0.4F;
  list.push_back(colour);
  colour.crop_w = 0.9F, colour.flip_horizontal = true, colour.quarter_turns = 1;
  list.push_back(colour);
  return list;
}

struct Case {
  int64_t height, width, size, patch;
};

template <class T>
class ImageTest : public testing::Test {};
using Types = testing::Types<double, float, bf16>;
TYPED_TEST_SUITE(ImageTest, Types);

TYPED_TEST(ImageTest, EqualsTheStepsOneByOne) {
  using T = TypeParam;
  test::for_each_isa([&] {
    for (const Case& k : {Case{8, 8, 8, 4}, Case{8, 8, 8, 8}, Case{5, 5, 5, 1}, Case{1, 1, 3, 3},
                          Case{7, 5, 6, 3}, Case{33, 17, 34, 17}, Case{3, 70, 4, 2}}) {
      SCOPED_TRACE(testing::Message()
                   << k.height << " x " << k.width << " to " << k.size << ", patch " << k.patch);
      const std::vector<ImageAugment> augment = draws();
      const auto batch = int64_t(augment.size());
      Buffer<uint8_t> pixels(batch, k.height * k.width * 3);
      const Philox rng = PhiloxKey(test::seed()).with("image");
      std::vector<const uint8_t*> images;
      for (int64_t b = 0; b < batch; ++b) {
        for (int64_t i = 0; i < pixels.cols(); ++i)
          pixels(b, i) = uint8_t(rng(uint64_t(b), uint64_t(i))[0]);
        images.push_back(&pixels(b, 0));
      }

      const int64_t grid = k.size / k.patch;
      std::vector<double> want;  // [batch * grid^2, 3 * patch^2]
      for (int64_t b = 0; b < batch; ++b) {
        const Picture source = mapped(k.height, k.width, [&](int64_t y, int64_t x, int64_t c) {
          return double(pixels(b, (y * k.width + x) * 3 + c)) / 255;
        });
        const Picture p = reference(source, augment[size_t(b)], k.size);
        for (int64_t gy = 0; gy < grid; ++gy)
          for (int64_t gx = 0; gx < grid; ++gx)
            for (int64_t c = 0; c < 3; ++c)
              for (int64_t y = 0; y < k.patch; ++y)
                for (int64_t x = 0; x < k.patch; ++x)
                  want.push_back(p.at(gy * k.patch + y, gx * k.patch + x, c));
      }

      // Computed in A: about a dozen roundings of values below 1.3 * 1.2 / min(std) < 8; stored in
      // T. Source positions are in double: an error of a few ulp of the image's extent, times a
      // slope of at most 8 a pixel in each direction.
      using A = Accum<T>;
      const double extent = double(std::max({k.height, k.width, k.size}));
      test::Budget budget{
          0, 12 * 8 * test::epsilon<A> / 2 + 2 * 8 * 4 * extent * test::epsilon<double>};
      if (!std::is_same_v<T, A>) budget.relative = test::epsilon<T> / 2 * 1.001;
      const ImageShape shape{batch, k.height, k.width, k.size, k.patch};
      Buffer<T> got(batch * grid * grid, 3 * k.patch * k.patch, 5), again = got;
      cpu::image_to_patches(images.data(), augment.data(), kMean, kStd, got.data(), got.ld(),
                            shape);
      EXPECT_TRUE(test::close(got, want, budget));
      cpu::image_to_patches(images.data(), augment.data(), kMean, kStd, again.data(), again.ld(),
                            shape);
      EXPECT_TRUE(test::identical(got, again));

      // An image's patches do not depend on the batch it is in.
      const int64_t last = batch - 1;
      Buffer<T> alone(grid * grid, 3 * k.patch * k.patch, 0);
      cpu::image_to_patches(&images[size_t(last)], &augment[size_t(last)], kMean, kStd,
                            alone.data(), alone.ld(),
                            ImageShape{1, k.height, k.width, k.size, k.patch});
      for (int64_t i = 0; i < alone.rows(); ++i)
        for (int64_t j = 0; j < alone.cols(); ++j)
          ASSERT_EQ(float(alone(i, j)), float(got(last * grid * grid + i, j)));
    }
  });
}

TEST(Image, NoAugmentMeansTheIdentity) {
  const std::vector<uint8_t> image{0, 51, 102, 153, 204, 255, 10, 20, 30, 40, 50, 60};  // [2, 2, 3]
  const uint8_t* images[1] = {image.data()};
  const float zero[3] = {0, 0, 0}, one[3] = {1, 1, 1};
  Buffer<double> got(1, 12);
  cpu::image_to_patches<double>(images, nullptr, zero, one, got.data(), got.ld(), {1, 2, 2, 2, 2});
  std::vector<double> want;
  for (int c = 0; c < 3; ++c)
    for (int i = 0; i < 4; ++i) want.push_back(image[size_t(3 * i + c)] / 255.0);
  EXPECT_TRUE(test::close(got, want, test::Budget{1e-15, 0}));
}

TEST(Image, AnEmptyBatchWritesNothing) {
  Buffer<float> got(1, 12);
  cpu::image_to_patches<float>(nullptr, nullptr, kMean, kStd, got.data(), got.ld(),
                               {0, 2, 2, 2, 2});
  EXPECT_TRUE(std::isnan(got(0, 0)));
  EXPECT_TRUE(got.verify());
}

}  // namespace
}  // namespace orthofed
