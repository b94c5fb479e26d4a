#include "engine/data/augment.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace orthofed {

ImageAugment draw_augment(const AugmentOptions& options, const Philox& rng) {
  ImageAugment draw;
  const auto place = rng(0), crop = rng(1), light = rng(2), stain = rng(3);
  const auto around_one = [](double amount, uint32_t bits) {
    return float(1 + amount * (2 * double(uniform01(bits)) - 1));
  };

  if (options.flip) {
    draw.flip_horizontal = (place[0] & 1) != 0;
    draw.flip_vertical = (place[1] & 1) != 0;
  }
  if (options.rotate90) draw.quarter_turns = int(place[2] & 3);

  if (options.crop_scale_min < 1) {
    const double area =
        options.crop_scale_min + (1 - options.crop_scale_min) * double(uniform01(crop[0]));
    const double ratio = std::exp(std::log(4.0 / 3.0) * (2 * double(uniform01(crop[1])) - 1));
    draw.crop_w = float(std::min(1.0, std::sqrt(area * ratio)));
    draw.crop_h = float(std::min(1.0, std::sqrt(area / ratio)));
    draw.crop_x = (1 - draw.crop_w) * uniform01(crop[2]);
    draw.crop_y = (1 - draw.crop_h) * uniform01(crop[3]);
  }

  draw.brightness = around_one(options.brightness, light[0]);
  draw.contrast = around_one(options.contrast, light[1]);
  draw.saturation = around_one(options.saturation, light[2]);
  for (size_t c = 0; c < 3; ++c) draw.channel[c] = around_one(options.stain, stain[c]);
  return draw;
}

}  // namespace orthofed
