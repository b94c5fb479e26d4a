// Benchmarks on the devices that are meant to be fast: cpu, and cuda where a GPU is.
//
//   template <class T>
//   void forward(benchmark::State& state, const Queue& queue) {
//     Array<T> x(queue, n, 1), y(queue, n);
//     measure(state, queue, bytes, [&] { of_on(queue, f, T)(x.data(), y.data(), n); });
//   }
//   const bool registered = on_each_device("f/bf16", forward<bf16>, sizes);
#pragma once
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/cuda_device.h"
#include "kernels/core/device.h"
#include "kernels/core/philox.h"

namespace orthofed::bench {

// n elements in a device's memory: uniform random numbers in [-1, 1), of the given Philox stream.
template <class T>
class Array {
 public:
  Array(const Queue& queue, int64_t n, uint64_t stream = 0) : queue_(queue), host_(size_t(n)) {
    const Philox rng = PhiloxKey(1).with(stream);
    for (size_t i = 0; i < host_.size(); ++i) host_[i] = T(float(2 * uniform01(rng(i)[0]) - 1));
#ifdef OF_HAVE_CUDA
    if (queue.device != Device::cuda) return;
    device_ = static_cast<T*>(cuda::allocate(bytes()));
    OF_CHECK(device_ != nullptr, "the GPU has no " + std::to_string(bytes()) + " bytes free");
    cuda::copy_rows(device_, bytes(), host_.data(), bytes(), bytes(), 1, queue.cuda);
#endif
  }
  ~Array() {
#ifdef OF_HAVE_CUDA
    cuda::release(device_);
#endif
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  T* data() {
    return queue_.device == Device::cpu ? host_.data() : device_;
  }
  // What the device holds now.
  const std::vector<T>& read() {
#ifdef OF_HAVE_CUDA
    if (queue_.device == Device::cuda)
      cuda::copy_rows(host_.data(), bytes(), device_, bytes(), bytes(), 1, queue_.cuda);
#endif
    return host_;
  }

 private:
  size_t bytes() const {
    return host_.size() * sizeof(T);
  }

  Queue queue_;
  std::vector<T> host_;
  T* device_ = nullptr;
};

// Times run(), which moves `bytes`. On a GPU by its own clock around a batch of launches, so that
// what a launch costs the host is hidden as it is in a training step; arrays that are to come from
// memory rather than from the level-2 cache must be larger than it (50 MB on an H100).
template <class Run>
void measure(benchmark::State& state, [[maybe_unused]] const Queue& queue, double bytes,
             const Run& run) {
  run();  // pages are touched, code is loaded
  for (auto _ : state) {
#ifdef OF_HAVE_CUDA
    if (queue.device == Device::cuda) {
      constexpr int kLaunches = 20;
      state.SetIterationTime(cuda::seconds_of(queue.cuda,
                                              [&] {
                                                for (int i = 0; i < kLaunches; ++i) run();
                                              }) /
                             kLaunches);
      continue;
    }
#endif
    const auto begin = std::chrono::steady_clock::now();
    run();
    benchmark::ClobberMemory();
    state.SetIterationTime(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  state.counters["GB/s"] =
      benchmark::Counter(1e-9 * bytes, benchmark::Counter::kIsIterationInvariantRate);
}

// Registers body as NAME/cpu and, where a GPU is, NAME/cuda.
inline bool on_each_device(const std::string& name, void (*body)(benchmark::State&, const Queue&),
                           void (*sizes)(benchmark::internal::Benchmark*)) {
  const auto add = [&](Device device) {
    Queue queue;
    queue.device = device;
    sizes(benchmark::RegisterBenchmark((name + '/' + name_of(device)).c_str(),
                                       [=](benchmark::State& state) { body(state, queue); })
              ->UseManualTime());
  };
  add(Device::cpu);
#ifdef OF_HAVE_CUDA
  if (cuda::device_count() > 0) add(Device::cuda);
#endif
  return true;
}

}  // namespace orthofed::bench
