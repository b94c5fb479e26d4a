// Images are resampled with antialias as by Pillow's Image.resize (and so by torchvision and timm
// on PIL images): a separable filter, widened by the scale when shrinking; each pass is computed in
// 22-bit fixed point and rounded to 8 bits (src/libImaging/Resample.c). The passes go along x, then
// along y, unless the height loses more than twice as many pixels as the width: that is the order
// of Pillow 13, as measured; before, it was always x first. Results equal Pillow 13's bit for bit.
#pragma once
#include <cstdint>

#include "engine/tensor/tensor.h"

namespace orthofed {

enum class Interpolation {
  bilinear,  // triangle, support 1
  bicubic,   // Keys' cubic with a = -1/2, support 2
};

// image u8 [H, W, 3], dense -> u8 [height, width, 3], dense. Runs on the calling thread.
Tensor resize(const Tensor& image, int64_t height, int64_t width, Interpolation interpolation);

// Cuts the middle [height, width, 3] out of a larger image; an odd margin rounds half to even, as
// in torchvision.
Tensor centre_crop(const Tensor& image, int64_t height, int64_t width);

// Returns what a model sees, u8 [size, size, 3]: with crop_pct = 1 the image is resized to the
// square whatever its aspect; below 1 its shorter side becomes floor(size / crop_pct) and the
// middle is cut out (timm's evaluation transforms "squash" and "center").
Tensor resize_to_square(const Tensor& image, int64_t size, double crop_pct,
                        Interpolation interpolation);

}  // namespace orthofed
