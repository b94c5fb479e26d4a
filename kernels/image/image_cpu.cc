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
#include <algorithm>
#include <cmath>

#include "kernels/core/parallel.h"
#include "kernels/image/image.h"

namespace orthofed::cpu {
namespace {

constexpr double kLuma[3] = {0.299, 0.587, 0.114};

template <class A>
struct Colour {
  A matrix[3][3];  // output channel, input channel; inputs are 0..255
  A offset[3];
  bool diagonal = true;
};

// Mean grey of the stored image in [0, 1]. The sums are exact.
double mean_grey(const uint8_t* image, int64_t pixels) {
  uint64_t sum[3] = {0, 0, 0};
  for (int64_t i = 0; i < pixels; ++i)
    for (int c = 0; c < 3; ++c) sum[c] += image[3 * i + c];
  double grey = 0;
  for (int c = 0; c < 3; ++c) grey += kLuma[c] * double(sum[c]);
  return grey / (255.0 * double(pixels));
}

template <class A>
Colour<A> colour_of(const ImageAugment& augment, const uint8_t* image, int64_t pixels,
                    const float* mean, const float* std) {
  const double b = augment.brightness, c = augment.contrast, s = augment.saturation;
  const double lift = c == 1 ? 0 : (1 - c) * b * mean_grey(image, pixels);
  Colour<A> colour;
  colour.diagonal = s == 1;
  for (int k = 0; k < 3; ++k) {
    const double gain = double(augment.channel[k]) / double(std[k]);
    for (int j = 0; j < 3; ++j)
      colour.matrix[k][j] = A(gain * b * c * ((k == j ? s : 0) + (1 - s) * kLuma[j]) / 255);
    colour.offset[k] = A(gain * lift - double(mean[k]) / double(std[k]));
  }
  return colour;
}

// Output pixel (y, x) shows source point (y0 + y dyy + x dyx, x0 + y dxy + x dxx), in pixels of the
// source: crop, flips and quarter turns together are one affine map.
struct Geometry {
  double y0 = 0, dyy = 1, dyx = 0;
  double x0 = 0, dxy = 0, dxx = 1;
  bool exact = true;  // a permutation of the source's pixels: no resampling
};

Geometry geometry_of(const ImageAugment& augment, const ImageShape& shape) {
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

  Geometry g;
  const bool whole = augment.crop_x == 0 && augment.crop_y == 0 && augment.crop_w == 1 &&
                     augment.crop_h == 1 && shape.source_height == shape.size &&
                     shape.source_width == shape.size;
  if (whole) {
    g = {v0, vy, vx, u0, uy, ux, true};
    return g;
  }
  // Pixel centres: source = (crop + (pixel + 1/2) / size * extent) * source size - 1/2.
  const double sy = double(augment.crop_h) * double(shape.source_height) / double(shape.size);
  const double sx = double(augment.crop_w) * double(shape.source_width) / double(shape.size);
  const double top = double(augment.crop_y) * double(shape.source_height);
  const double left = double(augment.crop_x) * double(shape.source_width);
  g = {top + (v0 + 0.5) * sy - 0.5,
       vy * sy,
       vx * sy,
       left + (u0 + 0.5) * sx - 0.5,
       uy * sx,
       ux * sx,
       false};
  return g;
}

// Bilinear sample of the three channels, the image continued by its edge pixels.
template <class A>
void sample(const uint8_t* image, int64_t height, int64_t width, double y, double x, A pixel[3]) {
  y = std::clamp(y, 0.0, double(height - 1));
  x = std::clamp(x, 0.0, double(width - 1));
  const auto y0 = int64_t(y), x0 = int64_t(x);
  const int64_t y1 = std::min(y0 + 1, height - 1), x1 = std::min(x0 + 1, width - 1);
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

// One image: patches [(size/patch)^2, 3 * patch * patch] pitch ld.
template <class T>
void one_image(const uint8_t* image, const Geometry& g, const Colour<Accum<T>>& colour, T* patches,
               int64_t ld, const ImageShape& shape) {
  using A = Accum<T>;
  const int64_t p = shape.patch, grid = shape.size / p, area = p * p;
  for (int64_t gy = 0; gy < grid; ++gy) {
    for (int64_t gx = 0; gx < grid; ++gx) {
      T* out = patches + (gy * grid + gx) * ld;  // [3, patch, patch]
      for (int64_t py = 0; py < p; ++py) {
        const int64_t y = gy * p + py, x = gx * p;
        if (g.exact) {
          const int64_t sy = int64_t(g.y0 + double(y) * g.dyy + double(x) * g.dyx);
          const int64_t sx = int64_t(g.x0 + double(y) * g.dxy + double(x) * g.dxx);
          const uint8_t* from = image + (sy * shape.source_width + sx) * 3;
          const int64_t step = (int64_t(g.dyx) * shape.source_width + int64_t(g.dxx)) * 3;
          for (int k = 0; k < 3; ++k) {
            const A m0 = colour.matrix[k][0], m1 = colour.matrix[k][1], m2 = colour.matrix[k][2];
            const A diagonal = colour.matrix[k][k], offset = colour.offset[k];
            T* to = out + k * area + py * p;
            if (colour.diagonal)
              for (int64_t i = 0; i < p; ++i) to[i] = T(A(from[i * step + k]) * diagonal + offset);
            else
              for (int64_t i = 0; i < p; ++i)
                to[i] = T(A(from[i * step]) * m0 + A(from[i * step + 1]) * m1 +
                          A(from[i * step + 2]) * m2 + offset);
          }
        } else {
          for (int64_t i = 0; i < p; ++i) {
            const double sy = g.y0 + double(y) * g.dyy + double(x + i) * g.dyx;
            const double sx = g.x0 + double(y) * g.dxy + double(x + i) * g.dxx;
            A pixel[3];
            sample(image, shape.source_height, shape.source_width, sy, sx, pixel);
            for (int k = 0; k < 3; ++k)
              out[k * area + py * p + i] =
                  T(pixel[0] * colour.matrix[k][0] + pixel[1] * colour.matrix[k][1] +
                    pixel[2] * colour.matrix[k][2] + colour.offset[k]);
          }
        }
      }
    }
  }
}

}  // namespace

template <class T>
void image_to_patches(const uint8_t* const* images, const ImageAugment* augment, const float* mean,
                      const float* std, T* patches, int64_t ld, const ImageShape& shape) {
  const int64_t grid = shape.size / shape.patch;
  parallel_for(shape.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const ImageAugment draw = augment != nullptr ? augment[b] : ImageAugment{};
      const auto colour =
          colour_of<Accum<T>>(draw, images[b], shape.source_height * shape.source_width, mean, std);
      one_image(images[b], geometry_of(draw, shape), colour, patches + b * grid * grid * ld, ld,
                shape);
    }
  });
}

template void image_to_patches<double>(const uint8_t* const*, const ImageAugment*, const float*,
                                       const float*, double*, int64_t, const ImageShape&);
template void image_to_patches<float>(const uint8_t* const*, const ImageAugment*, const float*,
                                      const float*, float*, int64_t, const ImageShape&);
template void image_to_patches<bf16>(const uint8_t* const*, const ImageAugment*, const float*,
                                     const float*, bf16*, int64_t, const ImageShape&);

}  // namespace orthofed::cpu
