#include "engine/tensor/device.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>

#include "engine/tensor/allocator.h"
#include "engine/tensor/graph.h"
#include "engine/tensor/profile.h"
#include "engine/tensor/watch.h"
#include "kernels/core/cuda_device.h"
#include "kernels/core/parallel.h"
#include "kernels/simt/memory.h"

namespace orthofed {
namespace {

// A thread's queues and their scratch memory, one for each device.
struct ThreadDevices {
  Queue queues[3];
  std::unique_ptr<Watch> watches[3];
  Device current = Device::cpu;

  ThreadDevices() {
    for (const Device d : {Device::cpu, Device::cuda, Device::simt}) {
      Queue& q = queues[int(d)];
      q.device = d;
      if (finite_check_asked()) watches[int(d)] = make_finite_check(q);
      if (d != Device::cpu && shadow_asked()) watches[int(d)] = make_shadow(q);
      q.watch = watches[int(d)].get();
    }
  }
  ~ThreadDevices() {
    for (const Device d : {Device::cuda, Device::simt}) {
      const Scratch& s = scratch_of(queues[int(d)]);
      if (s.data != nullptr) release(s.data, s.bytes, d);
    }
  }
};

ThreadDevices& mine() {
  thread_local ThreadDevices devices;
  return devices;
}

// Now, or with the launches that the thread's queue records.
void on_simt(const std::function<void()>& work) {
  simt::Recording* recording = queue_on(Device::simt).simt.recording;
  recording != nullptr ? recording->push_back(work) : work();
}

}  // namespace

Scratch& scratch_of(Queue& queue) {
  return queue.device == Device::cuda ? queue.cuda.scratch : queue.simt.scratch;
}

const Queue& queue() {
  return mine().queues[int(mine().current)];
}

const Queue& queue_on(Device device) {
  return mine().queues[int(device)];
}

void watch_calls(Watch* watch) {
  for (Queue& q : mine().queues) q.watch = watch;
}

const Queue& queue_with_scratch(size_t bytes) {
  ThreadDevices& m = mine();
  if (m.current != Device::cpu) {
    Scratch& s = scratch_of(m.queues[int(m.current)]);
    if (s.bytes < bytes) {
      const LastingMemory kept;
      if (s.data != nullptr) release(s.data, s.bytes, m.current);
      s = {};
      s.data = allocate(bytes, m.current);
      s.bytes = bytes;
    }
  }
  return queue();
}

OnQueue::OnQueue(Queue& other) : other_(other) {
  std::swap(mine().queues[int(other_.device)], other_);
}

OnQueue::~OnQueue() {
  const Device device = other_.device;
  std::swap(mine().queues[int(device)], other_);
}

bool available(Device device) {
  if (device != Device::cuda) return true;
#ifdef OF_HAVE_CUDA
  static const bool here = cuda::device_count() > 0;  // asked at every OnDevice
  return here;
#else
  return false;
#endif
}

OnDevice::OnDevice(Device device) : device_(device), before_(mine().current) {
  if (!available(device))
    throw UserError(
        cuda_built_in ? "device cuda: no GPU is here (or no driver for it); device cpu does without"
                      : "device cuda is not in this build: build where nvcc is, or use device cpu");
  mine().current = device;
}

OnDevice::~OnDevice() {
  mine().current = before_;
}

void copy_rows(void* to, Device to_device, size_t to_pitch, const void* from, Device from_device,
               size_t from_pitch, size_t width, size_t rows) {
  if (width == 0 || rows == 0) return;
  const Span span("copy", Profile::Kind::work, {0, 2.0 * double(width) * double(rows)});
  if (to_device != from_device)
    for (const Device device : {to_device, from_device})
      if (queue_on(device).capturing())
        refuse_while_capturing(device, fmt::format("a copy of {} bytes from {} to {}", width * rows,
                                                   name_of(from_device), name_of(to_device)));
#ifdef OF_HAVE_CUDA
  if (to_device == Device::cuda || from_device == Device::cuda) {
    const bool wait = to_device != from_device;
    return cuda::copy_rows(to, to_pitch, from, from_pitch, width, rows,
                           mine().queues[int(Device::cuda)].cuda, wait);
  }
#endif
  const auto copy = [=](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      std::memcpy(static_cast<char*>(to) + size_t(r) * to_pitch,
                  static_cast<const char*>(from) + size_t(r) * from_pitch, width);
  };
  if (to_device == Device::cpu && from_device == Device::cpu) {
    cpu::parallel_for(int64_t(rows), std::max<int64_t>(1, int64_t((1 << 18) / width)), copy);
    return;
  }
  on_simt([=] {
    const simt::OpenMemory open;
    copy(0, int64_t(rows));
  });
}

void zero_rows(void* data, Device device, size_t pitch, size_t width, size_t rows) {
  const Span span("zero", Profile::Kind::work, {0, double(width) * double(rows)});
#ifdef OF_HAVE_CUDA
  if (device == Device::cuda)
    return cuda::zero_rows(data, pitch, width, rows, mine().queues[int(Device::cuda)].cuda);
#endif
  const auto zero = [=] {
    for (size_t r = 0; r < rows; ++r) std::memset(static_cast<char*>(data) + r * pitch, 0, width);
  };
  if (device != Device::simt) return zero();
  on_simt([=] {
    const simt::OpenMemory open;
    zero();
  });
}

}  // namespace orthofed
