// Copies from host memory to a device, beside what the device computes:
//
//   const Tensor from = upload_buffer(bytes, device);  // pinned for cuda
//   upload.start(to, from);   // comes after what is queued so far; returns at once
//   ...                       // what is queued here runs during the copy
//   upload.join();            // what is queued from here on finds the copy done
//   upload.finish();          // `from` may be written again
//
// On cpu and simt nothing runs at the same time. There join() or finish() makes the copy, as late
// as possible, so that every test notices a `from` that is overwritten too early and a `to` that is
// read without join().
#pragma once
#include <memory>

#include "engine/tensor/tensor.h"
#include "kernels/core/cuda_device.h"

namespace orthofed {

// Returns u8 [bytes] on the host, uninitialised, from which the device copies fast.
Tensor upload_buffer(int64_t bytes, Device device);

// All calls come from one thread and use that thread's stream.
class Upload {
 public:
  explicit Upload(Device device);

  // u8 [n] each, `to` on the device and `from` an upload_buffer. One copy at a time.
  void start(const Tensor& to, const Tensor& from);
  void join();
  void finish();

 private:
  Device device_;
  Tensor to_, from_;  // of a copy that is still to be made
#ifdef OF_HAVE_CUDA
  std::unique_ptr<cuda::CopyStream> stream_;  // for device cuda
#endif
};

}  // namespace orthofed
