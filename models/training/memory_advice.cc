#include "models/training/memory_advice.h"

#include <fmt/core.h>

namespace orthofed {

std::string memory_advice(const OutOfMemory& error, int64_t images, int64_t micro_batches,
                          const TryStep& try_step) {
  const auto fits = [&](int64_t n, int64_t pieces) {
    try {
      try_step(n, pieces);
      return true;
    } catch (const OutOfMemory&) {
      return false;
    }
  };
  for (int64_t n = images / 2; n > 0; n /= 2) {
    if (!fits(n, 1)) continue;
    std::string advice =
        fmt::format("train.batch_size: {} images do not fit: {}; {} do: set train.batch_size = {}",
                    images, error.what(), n, n);
    const int64_t pieces = (images * micro_batches + n - 1) / n;
    if (fits(n, pieces))
      advice += fmt::format(" and train.accumulate = {} for steps of as many images", pieces);
    return advice;
  }
  return not_one_image_fits(error);
}

std::string not_one_image_fits(const OutOfMemory& error) {
  return fmt::format(
      "not even one image fits: {}; free some of it, or take a smaller model or another device",
      error.what());
}

}  // namespace orthofed
