#include "kernels/core/parallel.h"
#include "kernels/image/image.h"
#include "kernels/image/image_map.h"

namespace orthofed::cpu {
namespace {

double mean_grey_of(const uint8_t* image, int64_t pixels) {
  uint64_t sum[3] = {0, 0, 0};
  for (int64_t i = 0; i < pixels; ++i)
    for (int c = 0; c < 3; ++c) sum[c] += image[3 * i + c];
  return mean_grey(sum, pixels);
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
void image_to_patches(const ImageToPatches<T>& a) {
  const int64_t grid = a.shape.size / a.shape.patch;
  parallel_for(a.shape.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const ImageAugment draw = a.augment != nullptr ? a.augment[b] : ImageAugment{};
      const int64_t pixels = a.shape.source_height * a.shape.source_width;
      const double grey = needs_grey(draw) ? mean_grey_of(a.images[b], pixels) : 0;
      const auto colour = colour_of<Accum<T>>(draw, grey, a.mean, a.std);
      one_image(a.images[b], geometry_of(draw, a.shape), colour, a.patches + b * grid * grid * a.ld,
                a.ld, a.shape);
    }
  });
}

template void image_to_patches(const ImageToPatches<double>&);
template void image_to_patches(const ImageToPatches<float>&);
template void image_to_patches(const ImageToPatches<bf16>&);

}  // namespace orthofed::cpu
