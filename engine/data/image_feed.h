// A feed brings batches of images to a model. Pixels and the draws of their augmentation travel to
// the model's device as they are, and the device makes the patches (kernels/image): a quarter of
// the bytes of patches in f32, and no arithmetic on the host.
//
//   ImageFeed feed(shape, mean, std, dtype);
//   const ImageFeed::Stage stage = feed.stage();  // filled by any thread: a loader's workers
//   feed.send(stage);                             // a copy that runs beside the step before
//   feed.receive(count);                          // feed.patches() is the batch
//   feed.finish();                                // the stage may be filled again
#pragma once
#include <cstdint>

#include "engine/tensor/upload.h"
#include "kernels/image/image.h"

namespace orthofed {

class ImageFeed {
 public:
  // A batch in one block of memory, so that it travels in one copy. Labels and weights travel with
  // it for those who need them.
  struct Stage {
    Tensor block;            // u8 [bytes]; the rest lies in it
    Tensor pixels;           // u8 [batch, source_height * source_width * 3]
    ImageAugment* augment;   // [batch], the identity at first
    Tensor labels, weights;  // i32, accum(dtype) [batch]
  };

  // Makes patches of `dtype` from batches of shape.batch images, on the thread's device; mean, std
  // [3]. All calls but stage() come from one thread.
  ImageFeed(const ImageShape& shape, const float* mean, const float* std, DType dtype);

  Stage stage() const;  // in host memory, pinned for cuda

  // Starts the copy of a stage, which must not change before finish().
  void send(const Stage& stage);
  void finish();
  // Makes patches of the first `count` images of what was sent last; those of the others are 0.
  void receive(int64_t count);
  // Does all three, where nothing runs meanwhile; the patches of `count` images are good until the
  // next call.
  Tensor patches_of(const Stage& stage, int64_t count);

  // All three are on the device, in the same memory for every batch.
  const Tensor& patches() const { return patches_; }  // dtype [batch * patches, 3 * patch * patch]
  const Tensor& labels() const { return labels_; }    // i32 [batch]
  const Tensor& weights() const { return weights_; }  // accum(dtype) [batch]

 private:
  int64_t tokens() const { return (shape_.size / shape_.patch) * (shape_.size / shape_.patch); }
  Stage parts_of(const Tensor& block) const;

  Device device_;
  ImageShape shape_;
  DType dtype_;
  Tensor mean_, std_, patches_, labels_, weights_;
  Stage twin_;     // of a stage, on the device. One is enough: receive() empties it at once
  Tensor images_;  // the addresses of its images
  Upload upload_;
};

}  // namespace orthofed
