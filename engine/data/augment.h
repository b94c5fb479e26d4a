// Augmentation changes a training image at random and leaves its class alone. The draw is a
// function of the key, so it does not depend on who makes it or when; kernels/image applies it.
#pragma once
#include "kernels/core/philox.h"
#include "kernels/image/image.h"

namespace orthofed {

struct AugmentOptions {
  bool flip = true;             // horizontally and vertically, each with probability 1/2
  bool rotate90 = true;         // by a multiple of 90 degrees
  double crop_scale_min = 0.8;  // random resized crop: share of the area in [min, 1]; 1: off
  double brightness = 0.1, contrast = 0.1, saturation = 0.1;  // factor in 1 +- x
  double stain = 0.05;                                        // each channel's factor in 1 +- x
};

// The aspect ratio of a crop is in [3/4, 4/3], uniform in its logarithm (Szegedy et al., arXiv
// 1409.4842); a crop never reaches beyond the image.
ImageAugment draw_augment(const AugmentOptions& options, const Philox& rng);

}  // namespace orthofed
