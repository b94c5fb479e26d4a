// Stored 256 x 256 pixels of a batch to normalised patches of 224 x 224, resampled.
#include "kernels/image/image.h"

#include <algorithm>

#include "bench/support/bench.h"

namespace orthofed::bench {
namespace {

template <class T>
void to_patches(Bench& b, const Vit& v) {
  const auto grid = int64_t(std::sqrt(double(v.tokens - 1)));
  const ImageShape s{v.batch, 256, 256, 224, 224 / grid};
  const int64_t pixels = s.source_height * s.source_width * 3, width = 3 * s.patch * s.patch;
  std::vector<uint8_t> drawn;
  const Philox rng = PhiloxKey(3);
  for (int64_t i = 0; i < s.batch * pixels; ++i) drawn.push_back(uint8_t(rng(uint64_t(i))[0]));
  Array<uint8_t> stored(b, drawn);
  Array<float> mean(b, std::vector<float>{0.485F, 0.456F, 0.406F});
  Array<float> std(b, std::vector<float>{0.229F, 0.224F, 0.225F});
  Array<const uint8_t*> images(b, s.batch, [&](int64_t i) { return stored.data() + i * pixels; });
  Array<T> patches(b, s.batch * grid * grid * width, Fill::nan);
  const ImageAugment* none = nullptr;
  b.scratch(gpu::image_to_patches_scratch(s.batch));
  b.shape({{"batch", s.batch}, {"source", 256}, {"size", s.size}, {"patch", s.patch}});
  OF_TIME(b, image_to_patches, [&] {
    return ImageToPatches<T>{.images = images.data(),
                             .augment = none,
                             .mean = mean.data(),
                             .std = std.data(),
                             .patches = patches.data(),
                             .ld = width,
                             .shape = s};
  });
  b.expect(patches, patches.size(), [&](int64_t at) -> Expected {
    const int64_t i = at / width, c = at % width / (s.patch * s.patch);
    const int64_t row = i / grid % grid * s.patch + at % (s.patch * s.patch) / s.patch;
    const int64_t column = i % grid * s.patch + at % s.patch;
    const double y = (double(row) + 0.5) * 256 / double(s.size) - 0.5;
    const double x = (double(column) + 0.5) * 256 / double(s.size) - 0.5;
    double sum = 0;
    for (const double sy : {std::floor(y), std::floor(y) + 1}) {
      for (const double sx : {std::floor(x), std::floor(x) + 1}) {
        const int64_t py = std::clamp<int64_t>(int64_t(sy), 0, 255);
        const int64_t px = std::clamp<int64_t>(int64_t(sx), 0, 255);
        sum += (1 - std::abs(y - sy)) * (1 - std::abs(x - sx)) *
               stored[i / (grid * grid) * pixels + (py * 256 + px) * 3 + c];
      }
    }
    const double want = (sum / 255 - mean[c]) / std[c];
    return {want, 6 * epsilon<Accum<T>> * 5 + epsilon<T> * std::abs(want)};
  });
  b.measure();
}

const bool registered = on_every_vit("image/to_patches", to_patches<float>, to_patches<bf16>);

}  // namespace
}  // namespace orthofed::bench
