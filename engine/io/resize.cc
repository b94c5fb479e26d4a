#include "engine/io/resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "engine/io/dense.h"
#include "kernels/core/parallel.h"

namespace orthofed {
namespace {

constexpr int kFractionBits = 22;  // 32 - 8 for the pixel - 2 for the sign and overshoot

double triangle(double x) {
  x = std::abs(x);
  return x < 1 ? 1 - x : 0;
}

double cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

// Output line i is the sum of weights[i * taps + k] * input line first[i] + k, k < count[i].
struct Filter {
  int64_t taps = 0;
  std::vector<int64_t> first, count;
  std::vector<int32_t> weights;  // fixed point, kFractionBits
};

Filter make_filter(int64_t in, int64_t out, Interpolation interpolation) {
  const bool bicubic = interpolation == Interpolation::bicubic;
  const double scale = double(in) / double(out);
  const double stretch = std::max(scale, 1.0);
  const double support = (bicubic ? 2.0 : 1.0) * stretch;
  Filter f;
  f.taps = int64_t(std::ceil(support)) * 2 + 1;
  f.weights.resize(size_t(out * f.taps));
  std::vector<double> real(static_cast<size_t>(f.taps));
  for (int64_t i = 0; i < out; ++i) {
    const double centre = (double(i) + 0.5) * scale;
    const int64_t first = std::max(int64_t(centre - support + 0.5), int64_t{0});
    const int64_t count = std::min(int64_t(centre + support + 0.5), in) - first;
    double sum = 0;
    for (int64_t k = 0; k < count; ++k) {
      const double x = (double(k + first) - centre + 0.5) * (1.0 / stretch);
      real[size_t(k)] = bicubic ? cubic(x) : triangle(x);
      sum += real[size_t(k)];
    }
    for (int64_t k = 0; k < count; ++k) {
      const double w = (sum != 0 ? real[size_t(k)] / sum : real[size_t(k)]) * (1 << kFractionBits);
      f.weights[size_t(i * f.taps + k)] = int32_t(w < 0 ? w - 0.5 : w + 0.5);
    }
    f.first.push_back(first);
    f.count.push_back(count);
  }
  return f;
}

// from [in, columns] -> to [out, columns]: each output line is a weighted sum of input lines, block
// by block of columns, so that the sums stay in registers and cache.
void filter_lines(const uint8_t* from, uint8_t* to, int64_t columns, const Filter& f) {
  constexpr int64_t kBlock = 256;
  const auto out = int64_t(f.first.size());
  cpu::run_cloned([&] {
    int32_t sum[kBlock];
    for (int64_t i = 0; i < out; ++i) {
      const int32_t* w = f.weights.data() + i * f.taps;
      for (int64_t begin = 0; begin < columns; begin += kBlock) {
        const int64_t n = std::min(kBlock, columns - begin);
        for (int64_t j = 0; j < n; ++j) sum[j] = 1 << (kFractionBits - 1);
        for (int64_t k = 0; k < f.count[size_t(i)]; ++k) {
          const uint8_t* line = from + (f.first[size_t(i)] + k) * columns + begin;
          const int32_t weight = w[k];
          for (int64_t j = 0; j < n; ++j) sum[j] += line[j] * weight;
        }
        uint8_t* target = to + i * columns + begin;
        for (int64_t j = 0; j < n; ++j)
          target[j] = uint8_t(std::clamp(sum[j] >> kFractionBits, 0, 255));
      }
    }
  });
}

// from [h, w, 3] -> to [w, h, 3], in tiles that stay in the first-level cache.
void transpose_pixels(const uint8_t* from, uint8_t* to, int64_t h, int64_t w) {
  constexpr int64_t kTile = 32;
  for (int64_t y0 = 0; y0 < h; y0 += kTile)
    for (int64_t x0 = 0; x0 < w; x0 += kTile)
      for (int64_t x = x0; x < std::min(x0 + kTile, w); ++x)
        for (int64_t y = y0; y < std::min(y0 + kTile, h); ++y)
          std::memcpy(to + (x * h + y) * 3, from + (y * w + x) * 3, 3);
}

void check_image(const Tensor& image) {
  OF_CHECK(image.dtype() == DType::u8 && image.rank() == 3 && image.dim(2) == 3 && image.dense() &&
               image.size() > 0,
           "an image is dense u8 [H, W, 3]");
}

}  // namespace

Tensor resize(const Tensor& image, int64_t height, int64_t width, Interpolation interpolation) {
  check_image(image);
  OF_CHECK(height > 0 && width > 0, "an image has at least one pixel");
  const int64_t h = image.dim(0), w = image.dim(1);
  const auto along_x = [&](const Tensor& from) {  // [rows, w, 3] -> [rows, width, 3]
    if (width == w) return from;
    // Along x as along y: lines of the transposed image.
    const int64_t rows = from.dim(0);
    const Tensor columns = dense_tensor({w, rows, 3}, DType::u8);
    transpose_pixels(from.data<uint8_t>(), columns.data<uint8_t>(), rows, w);
    const Tensor filtered = dense_tensor({width, rows, 3}, DType::u8);
    filter_lines(columns.data<uint8_t>(), filtered.data<uint8_t>(), rows * 3,
                 make_filter(w, width, interpolation));
    const Tensor to = dense_tensor({rows, width, 3}, DType::u8);
    transpose_pixels(filtered.data<uint8_t>(), to.data<uint8_t>(), width, rows);
    return to;
  };
  const auto along_y = [&](const Tensor& from) {  // [h, columns, 3] -> [height, columns, 3]
    if (height == h) return from;
    const Tensor to = dense_tensor({height, from.dim(1), 3}, DType::u8);
    filter_lines(from.data<uint8_t>(), to.data<uint8_t>(), from.dim(1) * 3,
                 make_filter(h, height, interpolation));
    return to;
  };
  const bool y_first = height < h && 2 * (w - width) < h - height;
  return y_first ? along_x(along_y(image)) : along_y(along_x(image));
}

Tensor centre_crop(const Tensor& image, int64_t height, int64_t width) {
  check_image(image);
  OF_CHECK(height <= image.dim(0) && width <= image.dim(1), "the crop is larger than the image");
  if (height == image.dim(0) && width == image.dim(1)) return image;
  const auto top = int64_t(std::nearbyint(double(image.dim(0) - height) / 2));
  const auto left = int64_t(std::nearbyint(double(image.dim(1) - width) / 2));
  Tensor crop = dense_tensor({height, width, 3}, DType::u8);
  for (int64_t y = 0; y < height; ++y)
    std::memcpy(crop.data<uint8_t>() + y * width * 3,
                image.data<uint8_t>() + ((top + y) * image.dim(1) + left) * 3, size_t(width) * 3);
  return crop;
}

Tensor resize_to_square(const Tensor& image, int64_t size, double crop_pct,
                        Interpolation interpolation) {
  check_image(image);
  OF_CHECK(size > 0 && crop_pct > 0 && crop_pct <= 1, "crop_pct is a share of the image");
  if (crop_pct == 1) return resize(image, size, size, interpolation);
  const auto shorter = int64_t(std::floor(double(size) / crop_pct));
  const int64_t h = image.dim(0), w = image.dim(1);
  // torchvision: the longer side is truncated.
  const int64_t height = h <= w ? shorter : int64_t(double(shorter) * double(h) / double(w));
  const int64_t width = h <= w ? int64_t(double(shorter) * double(w) / double(h)) : shorter;
  return centre_crop(resize(image, height, width, interpolation), size, size);
}

}  // namespace orthofed
