// The image pipeline on a GPU, in two launches. The first sums the channels of those images whose
// contrast changes, each by several blocks; the sums are integers, so their order is nobody's
// concern. The second makes the patches: a block takes 1,024 neighbouring pixels of one image in
// the order of the output, a thread every 128th of them, so that the writes of a warp are
// contiguous in each channel and what it reads is close together. One thread a block works out
// where the pixels come from and what happens to their colours. Bytes bound it on a GPU that
// computes doubles at half the speed of floats: the source positions are some 15 operations in
// double a pixel.
#include "kernels/image/image.h"

#include "kernels/core/warp.cuh"
#include "kernels/image/image_map.h"

namespace orthofed::gpu {
namespace {

constexpr int kThreads = 128, kPixels = 8;  // a thread's

// Block (part, image) sums the image's pixels part, part + kGreyParts, ... of kThreads at a time.
// sums [batch, kGreyParts, 3]; those of an image that needs none are not written.
template <class T>
__global__ void grey_kernel(ImageToPatches<T> a, uint64_t* sums) {
  const int64_t pixels = a.shape.source_height * a.shape.source_width;
  const int64_t b = blockIdx.x / kGreyParts, part = blockIdx.x % kGreyParts;
  if (!needs_grey(a.augment[b])) return;
  const uint8_t* image = a.images[b];  // [pixels, 3]
  uint64_t sum[3] = {0, 0, 0};
  for (int64_t i = part * kThreads + threadIdx.x; i < pixels; i += kGreyParts * kThreads)
    for (int c = 0; c < 3; ++c) sum[c] += image[3 * i + c];
  for (int c = 0; c < 3; ++c) {
    const uint64_t all = block_sum<kThreads>(sum[c]);
    if (threadIdx.x == 0) sums[blockIdx.x * 3 + c] = all;
  }
}

template <class T>
__global__ void patches_kernel(ImageToPatches<T> a, const uint64_t* sums) {
  const ImageShape& shape = a.shape;
  __shared__ Geometry shared_geometry;
  __shared__ Colour<float> shared_colour;
  const auto size = unsigned(shape.size), patch = unsigned(shape.patch);
  const unsigned grid = size / patch, area = patch * patch, pixels = grid * grid * area;
  const unsigned blocks = (pixels + kThreads * kPixels - 1) / (kThreads * kPixels);  // an image's
  const int64_t b = blockIdx.x / blocks;
  const uint8_t* image = a.images[b];  // [source_height, source_width, 3]
  if (threadIdx.x == 0) {
    const ImageAugment draw = a.augment != nullptr ? a.augment[b] : ImageAugment{};
    double grey = 0;
    if (needs_grey(draw)) {
      uint64_t all[3] = {0, 0, 0};
      for (int part = 0; part < kGreyParts; ++part)
        for (int c = 0; c < 3; ++c) all[c] += sums[(b * kGreyParts + part) * 3 + c];
      grey = mean_grey(all, shape.source_height * shape.source_width);
    }
    shared_geometry = geometry_of(draw, shape);
    shared_colour = colour_of<float>(draw, grey, a.mean, a.std);
  }
  __syncthreads();
  const Geometry g = shared_geometry;
  const Colour<float> colour = shared_colour;
  const unsigned first = blockIdx.x % blocks * (kThreads * kPixels) + threadIdx.x;
  for (unsigned n = first; n < pixels && n < first + kThreads * kPixels; n += kThreads) {
    const unsigned token = n / area, i = n % area;  // patch (token) and pixel in it
    const unsigned y = token / grid * patch + i / patch, x = token % grid * patch + i % patch;
    const double sy = g.y0 + double(y) * g.dyy + double(x) * g.dyx;
    const double sx = g.x0 + double(y) * g.dxy + double(x) * g.dxx;
    float pixel[3];
    if (g.exact) {
      const uint8_t* from = image + (int64_t(sy) * shape.source_width + int64_t(sx)) * 3;
      for (int c = 0; c < 3; ++c) pixel[c] = float(from[c]);
    } else {
      sample(image, shape.source_height, shape.source_width, sy, sx, pixel);
    }
    T* out = a.patches + (b * grid * grid + token) * a.ld + i;  // [3, patch, patch]
#pragma unroll
    for (int k = 0; k < 3; ++k)
      out[k * area] = T(pixel[0] * colour.matrix[k][0] + pixel[1] * colour.matrix[k][1] +
                        pixel[2] * colour.matrix[k][2] + colour.offset[k]);
  }
}

}  // namespace

template <class T, class Stream>
void image_to_patches(const ImageToPatches<T>& a, const Stream& stream) {
  const int64_t grid = a.shape.size / a.shape.patch,
                pixels = grid * grid * a.shape.patch * a.shape.patch;
  OF_CHECK(pixels < int64_t{1} << 31, "an image of at most 2^31 pixels");
  auto* sums = scratch_as<uint64_t>(stream, image_to_patches_scratch(a.shape.batch));
  if (a.augment != nullptr)
    launch(grey_kernel<T>, {.grid_x = unsigned(a.shape.batch * kGreyParts), .threads_x = kThreads},
           stream, a, sums);
  launch(patches_kernel<T>,
         {.grid_x = unsigned(a.shape.batch * ceil_div(pixels, kThreads * kPixels)),
          .threads_x = kThreads},
         stream, a, sums);
}

#define OF_INSTANTIATE(T) \
  template void image_to_patches(const ImageToPatches<T>&, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
