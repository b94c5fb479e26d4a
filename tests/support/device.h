// Runs a test body on every device that this build and this machine have:
//
//   for_each_device<T>([](const Queue& queue) {
//     OF_RUN(queue, gelu_forward, GeluForward<T>{.x = x.data(), ...});
//     finish(queue);   // results are there
//   });
//
// These are cpu at each instruction-set level, simt in its three schedules, and cuda where there is
// a GPU. On cuda a Buffer's memory is managed, so that host and device see the same addresses.
#pragma once
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/device.h"
#include "tests/support/isa.h"
#include "tests/support/memory.h"

namespace orthofed::test {

// A queue with scratch memory of exactly the size that a kernel's x_scratch() states, full of NaN.
class WithScratch {
 public:
  WithScratch(const Queue& queue, size_t bytes)
      : queue_(queue), memory_(allocate_shared(bytes, 256)) {
    std::memset(memory_.get(), 0xff, bytes);
    queue_.cuda.scratch = queue_.simt.scratch = {memory_.get(), bytes};
  }
  operator const Queue&() const { return queue_; }

 private:
  Queue queue_;
  SharedMemory memory_;
};

// Waits until what was queued is done; throws where it failed.
inline void finish([[maybe_unused]] const Queue& queue) {
#ifdef OF_HAVE_CUDA
  if (queue.device == Device::cuda) cuda::synchronize(queue.cuda);
#endif
}

// OF_TEST_DEVICES=cuda leaves out cpu and simt, which a tool that watches the GPU would only slow
// down.
inline bool wanted(Device device) {
  const char* list = std::getenv("OF_TEST_DEVICES");
  return list == nullptr || std::strstr(list, name_of(device)) != nullptr;
}

inline std::vector<std::pair<std::string, Queue>> gpu_like_queues() {
  std::vector<std::pair<std::string, Queue>> queues;
  const auto simt = [&](const char* name, simt::Schedule schedule) {
    if (!wanted(Device::simt)) return;
    Queue queue;
    queue.device = Device::simt;
    queue.simt.schedule = schedule;
    queue.simt.seed = 7;
    queues.emplace_back(name, queue);
  };
  simt("simt, forward", simt::Schedule::forward);
  simt("simt, reverse", simt::Schedule::reverse);
  simt("simt, random", simt::Schedule::random);
  if (wanted(Device::cuda) && have_gpu()) {
    Queue queue;
    queue.device = Device::cuda;
    queues.emplace_back("cuda", queue);
  }
  return queues;
}

// The devices that run the .cu file.
template <class F>
void for_each_gpu(F&& body) {
  for (auto& [name, queue] : gpu_like_queues()) {
    SCOPED_TRACE(name);
    body(queue);
    if (testing::Test::HasFatalFailure()) break;
  }
}

// T: the element types of the call; double has no device but cpu.
template <class... T, class F>
void for_each_device(F&& body) {
  if (wanted(Device::cpu)) for_each_isa([&] { body(Queue{}); });
  if constexpr (gpu_computes<T...>)
    if (!testing::Test::HasFatalFailure()) for_each_gpu(body);
}

}  // namespace orthofed::test
