// The image pipeline's arithmetic: uint8 pixels in, normalised patches out, in one pass.
//
// For each image: take a crop, resample it bilinearly to size x size, flip, rotate by quarter
// turns, jitter the colour, normalise, and write it patch by patch, in the order of a convolution
// kernel's columns: patch (py, px), then channel, then row, then column. Where the crop is the
// whole image and the source is size x size, pixels are moved and never resampled. Instantiated for
// double, float and bf16.
//
// Error, for values below V: 6 eps V of Accum<T> for a dozen roundings, 2^-49 V max(height, width,
// size) for the source positions, which are in double, and eps(T)/2 of the result. Per output
// pixel: 3 bytes read (12, mostly from cache, where it is resampled), 3 sizeof(T) written; about 20
// flops and as many in double. Where the contrast changes, 3 bytes a source pixel more for the mean
// grey.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/core/cost.h"
#include "kernels/core/types.h"

namespace orthofed {

// One image's draw. Colour is jittered in [0, 1] pixel values: brightness, then contrast (about the
// mean grey of the stored image), then saturation, then a factor for each channel (stain). Values
// are not clipped. Grey is .299 r + .587 g + .114 b (ITU-R BT.601).
struct ImageAugment {
  float crop_x = 0, crop_y = 0, crop_w = 1, crop_h = 1;  // fractions of the source image
  bool flip_horizontal = false, flip_vertical = false;
  int quarter_turns = 0;  // counter-clockwise, after the flips
  float brightness = 1, contrast = 1, saturation = 1;
  std::array<float, 3> channel = {1, 1, 1};
};

struct ImageShape {
  int64_t batch = 0, source_height = 0, source_width = 0;  // stored images
  int64_t size = 0, patch = 0;                             // output: size x size, patch x patch
};

// All of it is the device's memory. size^2 < 2^31 on a GPU.
// Scratch on a GPU: image_to_patches_scratch(batch) bytes.
template <class T>
struct ImageToPatches {
  const uint8_t* const* images;           // [batch] of [source_height, source_width, 3]
  const ImageAugment* augment = nullptr;  // [batch]; null: the identity
  const float *mean, *std;                // [3] of pixels in [0, 1]
  T* patches;                             // [batch * (size/patch)^2, 3 * patch * patch] pitch ld
  int64_t ld;
  ImageShape shape;
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void image_to_patches(const ImageToPatches<T>& a);

}  // namespace orthofed::cpu

namespace orthofed::cost {

// One byte a channel for each output pixel, as if nothing were resampled: what a crop reads is the
// draw's, and in the device's memory.
template <class T>
Cost image_to_patches(const ImageToPatches<T>& a) {
  const double pixels = double(a.shape.batch) * a.shape.size * a.shape.size;
  return {40 * pixels, 3 * pixels + written(a.patches, 3 * pixels)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void image_to_patches(const ImageToPatches<T>& a, const Stream& stream);

inline constexpr int kGreyParts = 8;  // blocks that share an image's sums
inline size_t image_to_patches_scratch(int64_t batch) {
  return size_t(batch) * kGreyParts * 3 * sizeof(uint64_t);
}

}  // namespace orthofed::gpu
