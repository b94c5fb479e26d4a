// Checked CUDA calls, and handles that free themselves. Only files that nvcc compiles, and engine
// files in a build with CUDA, include this.
#pragma once
#include <cuda_runtime.h>

#include <memory>
#include <type_traits>

#include "kernels/core/check.h"

namespace orthofed::cuda {

// Throws Error naming the call and the driver's reason.
[[noreturn]] void fail(cudaError_t error, const char* call, const char* file, int line);

template <auto Destroy>
struct Deleter {
  template <class Handle>
  void operator()(Handle handle) const noexcept {
    Destroy(handle);  // a destructor has nobody to tell of an error
  }
};

template <class Handle, auto Destroy>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Deleter<Destroy>>;

using EventHandle = Owned<cudaEvent_t, cudaEventDestroy>;

EventHandle make_event();

}  // namespace orthofed::cuda

#define OF_CUDA_CHECK(call)                                                                   \
  do {                                                                                        \
    const cudaError_t of_error = (call);                                                      \
    if (of_error != cudaSuccess) ::orthofed::cuda::fail(of_error, #call, __FILE__, __LINE__); \
  } while (false)
