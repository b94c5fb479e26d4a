#include "engine/data/image_cache.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <optional>

#include "engine/io/dense.h"
#include "engine/io/files.h"

namespace orthofed {
namespace {

// Resizing the shorter side of a line of pixels would need any amount of memory.
void check_aspect(const Tensor& image, const std::string& id) {
  constexpr int64_t kMostElongated = 64;
  const int64_t shorter = std::min(image.dim(0), image.dim(1));
  const int64_t longer = std::max(image.dim(0), image.dim(1));
  if (longer > kMostElongated * shorter)
    throw UserError(fmt::format("{}: {} x {} pixels; one side may be at most {} times the other",
                                id, image.dim(1), image.dim(0), kMostElongated));
}

}  // namespace

ImageCache::ImageCache(const Dataset& dataset, const CacheOptions& options,
                       const Progress& progress)
    : classes_(dataset.classes), size_(options.size) {
  const auto n = int64_t(dataset.samples.size());
  const int64_t bytes = size_ * size_ * 3;  // of an image
  OF_CHECK(n > 0 && size_ > 0, "a cache holds images");
  in_memory_ = n <= options.memory_limit / bytes;
  if (in_memory_) {
    pixels_ = dense_tensor({n, bytes}, DType::u8);
  } else {
    const MappedFile scratch = map_scratch_file(size_t(n * bytes));
    pixels_ = Tensor::view(scratch.owner, scratch.bytes.data(), {n, bytes}, DType::u8);
  }

  std::vector<std::optional<std::string>> faults(static_cast<size_t>(n));
  run_workers(
      n, options.workers,
      [&](int64_t i) {
        try {
          const Sample& sample = dataset.samples[size_t(i)];
          const Tensor image = dataset.source->load(sample.image);
          check_aspect(image, sample.id);
          const Tensor square =
              resize_to_square(image, size_, options.crop_pct, options.interpolation);
          std::memcpy(pixels_.row<uint8_t>(i), square.raw(), size_t(bytes));
        } catch (const UserError& error) {
          if (options.refuse_bad_images) throw;
          faults[size_t(i)] = error.what();
        }
      },
      progress);

  for (int64_t i = 0; i < n; ++i) {
    const Sample& sample = dataset.samples[size_t(i)];
    if (faults[size_t(i)]) {
      skipped_.push_back({sample.id, *faults[size_t(i)]});
    } else {
      samples_.push_back(sample);
      slots_.push_back(i);
    }
  }
  if (samples_.empty())
    throw UserError(
        fmt::format("none of {} images can be read; the first: {}", n, skipped_.front().reason));
}

const uint8_t* ImageCache::image(int64_t i) const {
  return pixels_.row<uint8_t>(slots_[size_t(i)]);
}

}  // namespace orthofed
