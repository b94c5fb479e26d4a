// What an image's draw comes to, shared by CPU and GPU: one affine map of places, one of colours.
//
// Colour is affine in the pixel (r, g, b) / 255, so jitter and normalisation fold into one 3x3
// matrix and one offset per image. With grey = w . pixel, w the luma weights of ITU-R BT.601:
//
//   brightness  p <- b p
//   contrast    p <- c p + (1 - c) m 1         m = mean grey of the image, after brightness
//   saturation  p <- s p + (1 - s) grey(p) 1   leaves grey alone: grey(1) = 1
//   stain       p_k <- t_k p_k
//   normalise   p_k <- (p_k - mean_k) / std_k
//
// gives out_k = t_k / std_k (b c (s p_k + (1 - s) grey(p)) + (1 - c) m) - mean_k / std_k.
#pragma once
#include <cstdint>

#include "kernels/core/host_device.h"
#include "kernels/image/image.h"

namespace orthofed {

template <class A>
struct Colour {
  A matrix[3][3];  // output channel, input channel; inputs are 0..255
  A offset[3];
  bool diagonal;
};

OF_HOST_DEVICE inline double luma(int channel) {
  return channel == 0 ? 0.299 : channel == 1 ? 0.587 : 0.114;
}

// Mean grey in [0, 1], from the sums of the three channels over all pixels.
OF_HOST_DEVICE inline double mean_grey(const uint64_t sum[3], int64_t pixels) {
  double grey = 0;
  for (int c = 0; c < 3; ++c) grey += luma(c) * double(sum[c]);
  return grey / (255.0 * double(pixels));
}

// The mean grey counts only where the contrast changes.
OF_HOST_DEVICE inline bool needs_grey(const ImageAugment& augment) {
  return augment.contrast != 1;
}

template <class A>
OF_HOST_DEVICE Colour<A> colour_of(const ImageAugment& augment, double grey, const float* mean,
                                   const float* std) {
  const double b = augment.brightness, c = augment.contrast, s = augment.saturation;
  const double lift = needs_grey(augment) ? (1 - c) * b * grey : 0;
  Colour<A> colour;
  colour.diagonal = s == 1;
  for (int k = 0; k < 3; ++k) {
    const double gain = double(augment.channel[k]) / double(std[k]);
    for (int j = 0; j < 3; ++j)
      colour.matrix[k][j] = A(gain * b * c * ((k == j ? s : 0) + (1 - s) * luma(j)) / 255);
    colour.offset[k] = A(gain * lift - double(mean[k]) / double(std[k]));
  }
  return colour;
}

// Output pixel (y, x) shows source point (y0 + y dyy + x dyx, x0 + y dxy + x dxx), in pixels of the
// source: crop, flips and quarter turns together are one affine map.
struct Geometry {
  double y0, dyy, dyx;
  double x0, dxy, dxx;
  bool exact;  // a permutation of the source's pixels: no resampling
};

OF_HOST_DEVICE inline Geometry geometry_of(const ImageAugment& augment, const ImageShape& shape) {
  // Undo the turn, then the flips, about the centre; (v, u) = (cy + dy.(y, x), cx + dx.(y, x)) is
  // the pixel of the upright output.
  const double last = double(shape.size - 1);
  double vy = 1, vx = 0, v0 = 0, uy = 0, ux = 1, u0 = 0;
  switch (((augment.quarter_turns % 4) + 4) % 4) {
    case 0:
      break;
    case 1:
      vy = 0, vx = 1, v0 = 0, uy = -1, ux = 0, u0 = last;
      break;
    case 2:
      vy = -1, vx = 0, v0 = last, uy = 0, ux = -1, u0 = last;
      break;
    case 3:
      vy = 0, vx = -1, v0 = last, uy = 1, ux = 0, u0 = 0;
      break;
  }
  if (augment.flip_vertical) vy = -vy, vx = -vx, v0 = last - v0;
  if (augment.flip_horizontal) uy = -uy, ux = -ux, u0 = last - u0;

  const bool whole = augment.crop_x == 0 && augment.crop_y == 0 && augment.crop_w == 1 &&
                     augment.crop_h == 1 && shape.source_height == shape.size &&
                     shape.source_width == shape.size;
  if (whole) return {v0, vy, vx, u0, uy, ux, true};
  // Pixel centres: source = (crop + (pixel + 1/2) / size * extent) * source size - 1/2.
  const double sy = double(augment.crop_h) * double(shape.source_height) / double(shape.size);
  const double sx = double(augment.crop_w) * double(shape.source_width) / double(shape.size);
  const double top = double(augment.crop_y) * double(shape.source_height);
  const double left = double(augment.crop_x) * double(shape.source_width);
  return {top + (v0 + 0.5) * sy - 0.5,
          vy * sy,
          vx * sy,
          left + (u0 + 0.5) * sx - 0.5,
          uy * sx,
          ux * sx,
          false};
}

// Bilinear sample of the three channels, the image continued by its edge pixels.
template <class A>
OF_HOST_DEVICE void sample(const uint8_t* image, int64_t height, int64_t width, double y, double x,
                           A pixel[3]) {
  const double bottom = double(height - 1), right = double(width - 1);
  y = y < 0 ? 0 : y > bottom ? bottom : y;
  x = x < 0 ? 0 : x > right ? right : x;
  const auto y0 = int64_t(y), x0 = int64_t(x);
  const int64_t y1 = y0 + 1 < height ? y0 + 1 : y0, x1 = x0 + 1 < width ? x0 + 1 : x0;
  const A fy = A(y - double(y0)), fx = A(x - double(x0));
  const uint8_t* p00 = image + (y0 * width + x0) * 3;
  const uint8_t* p01 = image + (y0 * width + x1) * 3;
  const uint8_t* p10 = image + (y1 * width + x0) * 3;
  const uint8_t* p11 = image + (y1 * width + x1) * 3;
  for (int c = 0; c < 3; ++c) {
    const A above = A(p00[c]) + fx * (A(p01[c]) - A(p00[c]));
    const A below = A(p10[c]) + fx * (A(p11[c]) - A(p10[c]));
    pixel[c] = above + fy * (below - above);
  }
}

}  // namespace orthofed
