// The cache holds every image of a data set, decoded and resized once per run: u8 [n, size, size,
// 3], in memory up to a limit, and above it in a mapped file that has no name and goes with
// the process.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "engine/data/dataset.h"
#include "engine/data/workers.h"
#include "engine/io/resize.h"

namespace orthofed {

struct CacheOptions {
  int64_t size = 224;   // pixels
  double crop_pct = 1;  // as resize_to_square
  Interpolation interpolation = Interpolation::bicubic;
  bool refuse_bad_images = false;     // else they are skipped and listed
  int64_t memory_limit = 1024 << 20;  // bytes
  int64_t workers = 1;                // threads that decode
};

struct BadImage {
  std::string id, reason;
};

// Immutable once built; reading is thread-safe.
class ImageCache {
 public:
  // Throws UserError if a bad image is refused, if none is left, or if the disk has no room.
  ImageCache(const Dataset& dataset, const CacheOptions& options, const Progress& progress = {});

  // Those that could be read, in the data set's order.
  const std::vector<Sample>& samples() const { return samples_; }
  int64_t count() const { return int64_t(samples_.size()); }
  const std::vector<std::string>& classes() const { return classes_; }
  const std::vector<BadImage>& skipped() const { return skipped_; }

  int64_t size() const { return size_; }
  const uint8_t* image(int64_t i) const;  // of samples()[i]: [size, size, 3]
  bool in_memory() const { return in_memory_; }

 private:
  std::vector<Sample> samples_;
  std::vector<std::string> classes_;
  std::vector<BadImage> skipped_;
  std::vector<int64_t> slots_;  // of each sample
  Tensor pixels_;               // u8 [slots, size * size * 3]
  int64_t size_ = 0;
  bool in_memory_ = true;
};

}  // namespace orthofed
