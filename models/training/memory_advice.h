// What to tell the user where a device's memory is too small for a step, or for one image.
#pragma once
#include <functional>
#include <string>

#include "engine/tensor/allocator.h"

namespace orthofed {

// Runs a step of `micro_batches` times `images` images; throws OutOfMemory where they do not fit.
using TryStep = std::function<void(int64_t images, int64_t micro_batches)>;

// The message for a step of micro_batches times `images` images that failed with `error`: it names
// the largest of half as many images, a quarter, ... that fits, and how many micro-batches of it
// make as large a step, if those fit as well.
std::string memory_advice(const OutOfMemory& error, int64_t images, int64_t micro_batches,
                          const TryStep& try_step);

std::string not_one_image_fits(const OutOfMemory& error);

}  // namespace orthofed
