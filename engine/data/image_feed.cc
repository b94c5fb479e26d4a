#include "engine/data/image_feed.h"

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "engine/tensor/bytes.h"

namespace orthofed {
namespace {

// Where the parts of a block begin, in bytes; pixels are the first.
struct Layout {
  size_t augment, labels, weights, end;
};

Layout layout_of(const ImageShape& s, DType dtype) {
  const auto aligned = [](size_t bytes) { return (bytes + 15) / 16 * 16; };
  const auto batch = size_t(s.batch);
  Layout at{};
  at.augment = aligned(batch * size_t(s.source_height * s.source_width * 3));
  at.labels = at.augment + aligned(batch * sizeof(ImageAugment));
  at.weights = at.labels + aligned(batch * sizeof(int32_t));
  at.end = at.weights + aligned(batch * size_of(accum(dtype)));
  return at;
}

}  // namespace

ImageFeed::ImageFeed(const ImageShape& shape, const float* mean, const float* std, DType dtype)
    : device_(queue().device),
      shape_(shape),
      dtype_(dtype),
      mean_(Tensor::of(std::span(mean, 3), {3})),
      std_(Tensor::of(std::span(std, 3), {3})),
      upload_(device_) {
  const int64_t batch = shape.batch;
  patches_ = Tensor::zeros({batch * tokens(), 3 * shape.patch * shape.patch}, dtype);
  labels_ = Tensor::zeros({batch}, DType::i32);
  weights_ = Tensor::zeros({batch}, accum(dtype));
  twin_ = parts_of(Tensor::empty({int64_t(layout_of(shape, dtype).end)}, DType::u8));
  std::vector<const uint8_t*> images;
  for (int64_t i = 0; i < batch; ++i) images.push_back(twin_.pixels.row<uint8_t>(i));
  images_ = bytes_of(images);
}

ImageFeed::Stage ImageFeed::parts_of(const Tensor& block) const {
  const Layout at = layout_of(shape_, dtype_);
  const auto owner = std::make_shared<Tensor>(block);
  auto* const begin = block.data<uint8_t>();
  const auto part = [&](size_t offset, const Shape& shape, DType dtype) {
    return Tensor::view(owner, begin + offset, shape, dtype, 0, block.device());
  };
  const int64_t batch = shape_.batch;
  return {block, part(0, {batch, shape_.source_height * shape_.source_width * 3}, DType::u8),
          reinterpret_cast<ImageAugment*>(begin + at.augment), part(at.labels, {batch}, DType::i32),
          part(at.weights, {batch}, accum(dtype_))};
}

ImageFeed::Stage ImageFeed::stage() const {
  Stage s = parts_of(upload_buffer(int64_t(layout_of(shape_, dtype_).end), device_));
  std::fill_n(s.augment, shape_.batch, ImageAugment{});
  return s;
}

void ImageFeed::send(const Stage& stage) {
  upload_.start(twin_.block, stage.block);
}

void ImageFeed::finish() {
  upload_.finish();
}

void ImageFeed::receive(int64_t count) {
  OF_CHECK(count >= 0 && count <= shape_.batch,
           "a batch holds no more images than it has room for");
  const OnDevice scope(device_);
  upload_.join();
  ImageShape shape = shape_;
  shape.batch = count;
  const ImageAugment* augment = twin_.augment;
  dispatch(dtype_, [&]<class T>(Tag<T>) {
    OF_RUN(queue_of(patches_, gpu::image_to_patches_scratch(count)), image_to_patches,
           ImageToPatches<T>{.images = as<const uint8_t* const>(images_),
                             .augment = augment,
                             .mean = mean_.data<float>(),
                             .std = std_.data<float>(),
                             .patches = patches_.data<T>(),
                             .ld = patches_.pitch(),
                             .shape = shape});
  });
  if (count < shape_.batch) patches_.row_range(count * tokens(), patches_.rows()).fill(0);
  labels_.copy_from(twin_.labels);
  weights_.copy_from(twin_.weights);
}

Tensor ImageFeed::patches_of(const Stage& stage, int64_t count) {
  send(stage);
  receive(count);
  finish();
  return patches_.row_range(0, count * tokens());
}

}  // namespace orthofed
