#include "kernels/image/image.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/buffer.h"
#include "tests/support/compare.h"
#include "tests/support/device.h"
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

// The batch as a device finds it: everything in its memory.
template <class T>
struct Call {
  Call(std::vector<const uint8_t*> pixels, const std::vector<ImageAugment>& draws)
      : images(1, int64_t(pixels.size())),
        augment(1, int64_t(draws.size())),
        mean(1, 3),
        std(1, 3) {
    std::copy(pixels.begin(), pixels.end(), images.data());
    std::copy(draws.begin(), draws.end(), augment.data());
    std::copy(kMean, kMean + 3, mean.data());
    std::copy(kStd, kStd + 3, std.data());
  }
  void run(const Queue& queue, Buffer<T>& patches, const ImageShape& shape) const {
    const test::WithScratch at(queue, gpu::image_to_patches_scratch(shape.batch));
    const ImageAugment* draws = augment.cols() > 0 ? augment.data() : nullptr;
    OF_RUN(at, image_to_patches,
           ImageToPatches<T>{.images = images.data(),
                             .augment = draws,
                             .mean = mean.data(),
                             .std = std.data(),
                             .patches = patches.data(),
                             .ld = patches.ld(),
                             .shape = shape});
    test::finish(at);
  }
  Buffer<const uint8_t*> images;
  Buffer<ImageAugment> augment;
  Buffer<float> mean, std;
};

struct Case {
  int64_t height, width, size, patch;
};

template <class T>
class ImageTest : public testing::Test {};
using Types = testing::Types<double, float, bf16>;
TYPED_TEST_SUITE(ImageTest, Types);

TYPED_TEST(ImageTest, EqualsTheStepsOneByOne) {
  using T = TypeParam;
  for (const Case& k :
       {Case{8, 8, 8, 4}, Case{8, 8, 8, 8}, Case{5, 5, 5, 1}, Case{1, 1, 3, 3}, Case{7, 5, 6, 3},
        Case{33, 17, 34, 17}, Case{3, 70, 4, 2}, Case{9, 9, 8, 3}}) {
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
    test::Budget budget{0, 12 * 8 * epsilon<A> / 2 + 2 * 8 * 4 * extent * epsilon<double>};
    if (!std::is_same_v<T, A>) budget.relative = epsilon<T> / 2 * 1.001;
    const ImageShape shape{batch, k.height, k.width, k.size, k.patch};
    const Call<T> call(images, augment), last_alone({images.back()}, {augment.back()});

    test::for_each_device<T>([&](const Queue& queue) {
      Buffer<T> got(batch * grid * grid, 3 * k.patch * k.patch, 5), again = got;
      call.run(queue, got, shape);
      EXPECT_TRUE(test::close(got, want, budget));
      call.run(queue, again, shape);
      EXPECT_TRUE(test::identical(got, again));

      // An image's patches do not depend on the batch it is in.
      Buffer<T> alone(grid * grid, 3 * k.patch * k.patch, 0);
      last_alone.run(queue, alone, {1, k.height, k.width, k.size, k.patch});
      for (int64_t i = 0; i < alone.rows(); ++i)
        for (int64_t j = 0; j < alone.cols(); ++j)
          ASSERT_EQ(float(alone(i, j)), float(got((batch - 1) * grid * grid + i, j)));
    });
  }
}

TYPED_TEST(ImageTest, NoAugmentMeansTheIdentity) {
  using T = TypeParam;
  Buffer<uint8_t> image(1, 12);  // [2, 2, 3]
  std::vector<double> want;
  for (int c = 0; c < 3; ++c)
    for (int i = 0; i < 4; ++i) {
      image(0, 3 * i + c) = uint8_t(51 * c + 20 * i);
      want.push_back((image(0, 3 * i + c) / 255.0 - double(kMean[c])) / double(kStd[c]));
    }
  const Call<T> call({image.data()}, {});
  test::for_each_device<T>([&](const Queue& queue) {
    Buffer<T> got(1, 12);
    call.run(queue, got, {1, 2, 2, 2, 2});
    EXPECT_TRUE(test::close(got, want, test::Budget{epsilon<T>, 8 * epsilon<Accum<T>>}));
  });
}

TYPED_TEST(ImageTest, AnEmptyBatchWritesNothing) {
  using T = TypeParam;
  const Call<T> call({}, {});
  test::for_each_device<T>([&](const Queue& queue) {
    Buffer<T> got(1, 12);
    call.run(queue, got, {0, 2, 2, 2, 2});
    EXPECT_TRUE(std::isnan(float(got(0, 0))));
    EXPECT_TRUE(got.verify());
  });
}

}  // namespace
}  // namespace orthofed
