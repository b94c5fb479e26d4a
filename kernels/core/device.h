// Where kernels run, and how one call reaches all three places.
//
//   cpu   orthofed::cpu::f(args)          the readable reference; returns when it is done
//   cuda  orthofed::gpu::f(args, stream)  x.cu compiled by nvcc, queued on a cuda::Stream
//   simt  orthofed::gpu::f(args, stream)  the same x.cu compiled by g++ and run by kernels/simt,
//                                         thread by thread; returns when it is done
//
// The three take the same struct, which is the kernel's contract. gpu:: computes in float and bf16.
// One function more, cost::f(args), says what the call costs (cost.h). OF_RUN takes a function's
// name and calls the one of them that the queue's device asks for:
//
//   OF_RUN(queue, layer_norm_forward, LayerNormForward<T>{.x = x, .ldx = ldx, ...});
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/watch.h"

namespace orthofed {

enum class Device : uint8_t { cpu, cuda, simt };

constexpr const char* name_of(Device device) {
  return device == Device::cpu ? "cpu" : device == Device::cuda ? "cuda" : "simt";
}

// Memory that any kernel on the stream may overwrite, for partial sums; aligned to 256 bytes. Each
// gpu:: function that needs some has a twin x_scratch(sizes) -> bytes. Kernels never allocate.
struct Scratch {
  void* data = nullptr;
  size_t bytes = 0;
};

namespace cuda {
struct Stream {
  void* handle = nullptr;  // cudaStream_t
  Scratch scratch;
  bool capturing = false;  // what is queued becomes part of a graph and does not run (cuda::Graph)
};
}  // namespace cuda

namespace simt {
// Launches, copies and fills that were kept instead of run, in order.
using Recording = std::vector<std::function<void()>>;

// The order in which runnable threads (and blocks) take their turn. Asynchronous copies and
// products take effect as early as they may in `forward`, as late as they may in `reverse`.
enum class Schedule : uint8_t { forward, reverse, random };
struct Stream {
  Schedule schedule = Schedule::forward;
  uint64_t seed = 0;  // of Schedule::random
  Scratch scratch;
  int capability = 80;             // the emulated device's: 80, or 90 for Hopper
  Recording* recording = nullptr;  // where launches go instead; null: they run
};
}  // namespace simt

// The stream's scratch memory, large enough for `bytes`.
template <class T, class Stream>
T* scratch_as(const Stream& stream, size_t bytes) {
  OF_CHECK(stream.scratch.bytes >= bytes, "scratch memory: " + std::to_string(bytes) +
                                              " bytes are needed, the stream has " +
                                              std::to_string(stream.scratch.bytes));
  return static_cast<T*>(stream.scratch.data);
}

// A device and what its kernels are queued on.
struct Queue {
  Device device = Device::cpu;
  cuda::Stream cuda;
  simt::Stream simt;
  Watch* watch = nullptr;  // looks at every call; null: nobody does

  bool capturing() const { return cuda.capturing || simt.recording != nullptr; }
};

// Is device cuda compiled in? (Whether a GPU is there is another question.)
#ifdef OF_HAVE_CUDA
inline constexpr bool cuda_built_in = true;
#else
inline constexpr bool cuda_built_in = false;
#endif

// GPUs compute in float and bf16; double is for gradient checks on the CPU.
template <class... T>
inline constexpr bool gpu_computes = !(std::is_same_v<T, double> || ...);

// Whether a call with these arguments computes in double, as LayerNormForward<double> does.
template <class Args>
inline constexpr bool computes_in_double = false;
template <template <class...> class Args, class... T>
inline constexpr bool computes_in_double<Args<T...>> = !gpu_computes<T...>;

// Calls use(stream) with the stream of the queue's device, which is not cpu.
template <class Use>
void on_stream(const Queue& queue, const Use& use) {
  if (queue.device == Device::simt) return use(queue.simt);
#ifdef OF_HAVE_CUDA
  return use(queue.cuda);
#endif
  throw Error(std::string("device ") + name_of(queue.device) + " is not in this build");
}

// OF_RUN expands to this: it runs the kernel on the queue's device and shows the call to its watch.
template <class Cpu, class Gpu, class CostOf, class Args>
void run_kernel(const Queue& queue, const char* kernel, const Cpu& on_cpu, const Gpu& on_gpu,
                const CostOf& cost_of, const Args& args) {
  const auto run = [&] {
    if (queue.device == Device::cpu) return on_cpu(args);
    if constexpr (computes_in_double<Args>)
      throw Error(std::string("device ") + name_of(queue.device) + " does not compute in double");
    else
      on_stream(queue, [&](const auto& stream) { on_gpu(args, stream); });
  };
  if (queue.watch == nullptr) return run();
  queue.watch->begin(kernel);
  const Args twins = shown(*queue.watch, args);
  queue.watch->run(cost_of(twins));
  run();
  if (queue.watch->ran()) on_cpu(twins);
  queue.watch->end();
}

}  // namespace orthofed

// Runs cpu::kernel or gpu::kernel, as the queue's device asks, with a struct of arguments. It is a
// macro because only a macro finds three functions by one name.
#define OF_RUN(queue, kernel, ...)                                                   \
  ::orthofed::run_kernel(                                                            \
      queue, #kernel, [](const auto& of_args) { ::orthofed::cpu::kernel(of_args); }, \
      [](const auto& of_args, const auto& of_stream) {                               \
        ::orthofed::gpu::kernel(of_args, of_stream);                                 \
      },                                                                             \
      [](const auto& of_args) { return ::orthofed::cost::kernel(of_args); }, __VA_ARGS__)
