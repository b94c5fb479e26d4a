#include "engine/tensor/device.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>

#include "engine/tensor/allocator.h"
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
      const Scratch& s = scratch(d);
      if (s.data != nullptr) release(s.data, s.bytes, d);
    }
  }
  Scratch& scratch(Device d) {
    return d == Device::cuda ? queues[int(d)].cuda.scratch : queues[int(d)].simt.scratch;
  }
};

ThreadDevices& mine() {
  thread_local ThreadDevices devices;
  return devices;
}

}  // namespace

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
    Scratch& s = m.scratch(m.current);
    if (s.bytes < bytes) {
      if (s.data != nullptr) release(s.data, s.bytes, m.current);
      s = {};
      s.data = allocate(bytes, m.current);
      s.bytes = bytes;
    }
  }
  return queue();
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
#ifdef OF_HAVE_CUDA
  if (to_device == Device::cuda || from_device == Device::cuda)
    return cuda::copy_rows(to, to_pitch, from, from_pitch, width, rows,
                           mine().queues[int(Device::cuda)].cuda);
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
  const simt::OpenMemory open;
  copy(0, int64_t(rows));
}

void zero_rows(void* data, Device device, size_t pitch, size_t width, size_t rows) {
  const Span span("zero", Profile::Kind::work, {0, double(width) * double(rows)});
#ifdef OF_HAVE_CUDA
  if (device == Device::cuda)
    return cuda::zero_rows(data, pitch, width, rows, mine().queues[int(Device::cuda)].cuda);
#endif
  std::optional<simt::OpenMemory> open;
  if (device == Device::simt) open.emplace();
  for (size_t r = 0; r < rows; ++r) std::memset(static_cast<char*>(data) + r * pitch, 0, width);
}

}  // namespace orthofed
