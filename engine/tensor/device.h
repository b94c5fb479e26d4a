// Every thread has a current device, where its new tensors go and its kernels run.
//
//   OnDevice scope(Device::simt);
//   const Tensor x = Tensor::zeros({4, 8}, DType::f32);   // on the emulated device
//
// A tensor stays where it was made; an op runs on its inputs' device, which must be the thread's.
// Every kernel call may be watched (engine/tensor/watch.h).
#pragma once
#include "kernels/core/device.h"

namespace orthofed {

const Queue& queue();  // of the thread's current device
// The same with scratch memory of at least `bytes`, which is the thread's own and grows.
const Queue& queue_with_scratch(size_t bytes);

// The thread's queue of any device, current or not, for what a tensor does wherever it lies.
const Queue& queue_on(Device device);

class OnDevice {
 public:
  explicit OnDevice(Device device);  // throws UserError where the device is not available
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  Device device() const { return device_; }

 private:
  Device device_, before_;
};

// While one exists, the thread uses this queue of the device instead of its own; the scratch memory
// grows with what is asked of it. Captured steps need this (graph.h).
class OnQueue {
 public:
  explicit OnQueue(Queue& other);
  ~OnQueue();
  OnQueue(const OnQueue&) = delete;
  OnQueue& operator=(const OnQueue&) = delete;

 private:
  Queue& other_;
};

// The scratch memory of the queue's own device.
Scratch& scratch_of(Queue& queue);

// Is the device in this build and on this machine?
bool available(Device device);

// Copies rows of `width` bytes that are `pitch` bytes apart, between any two devices.
void copy_rows(void* to, Device to_device, size_t to_pitch, const void* from, Device from_device,
               size_t from_pitch, size_t width, size_t rows);

// Sets such rows to zero.
void zero_rows(void* data, Device device, size_t pitch, size_t width, size_t rows);

}  // namespace orthofed
