// What a .cu file includes: the CUDA language and launches, from nvcc's headers where nvcc
// compiles, from kernels/simt where g++ does. Headers of kernels/core are the only places that know
// which; a kernel is written once.
//
// A .cu file keeps its kernels in an anonymous namespace (sanitizers guard only such statics), and
// defines each gpu:: function as a template over Stream, instantiated for OF_STREAM:
//
//   template void layer_norm_forward<float>(..., const OF_STREAM&);
#pragma once
#include "kernels/core/device.h"
#include "kernels/core/host_device.h"
#include "kernels/core/types.h"

namespace orthofed::gpu {

// Devices take 2^31 - 1 blocks in x and 65,535 in y and z.
struct LaunchShape {
  unsigned grid_x = 1, grid_y = 1, grid_z = 1;
  unsigned threads_x = 1, threads_y = 1;
  size_t shared_bytes = 0;  // dynamic; static __shared__ comes on top
};

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace orthofed::gpu

#ifdef __CUDACC__

#include <cuda_runtime.h>

#include "kernels/core/cuda.h"

#define OF_STREAM ::orthofed::cuda::Stream

namespace orthofed::gpu {
namespace {

// Queues kernel(args...) on the stream; an empty grid is no launch. Arguments convert to the
// kernel's parameter types.
template <class... P, class... A>
void launch(void (*kernel)(P...), const LaunchShape& shape, const cuda::Stream& stream,
            const A&... args) {
  if (shape.grid_x == 0 || shape.grid_y == 0 || shape.grid_z == 0) return;
  if (shape.shared_bytes > 48 * 1024)
    OF_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                       cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(shape.shared_bytes)));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.grid_x, shape.grid_y, shape.grid_z);
  config.blockDim = dim3(shape.threads_x, shape.threads_y);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream.handle);
  OF_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...));
}

// The block's dynamic shared memory, aligned to 1,024 bytes (TMA's 128-byte swizzle wants that).
template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char of_dynamic_shared[];
  return reinterpret_cast<T*>(of_dynamic_shared);
}

// The address of shared memory by which instructions know it.
__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace
}  // namespace orthofed::gpu

#else

#include <tuple>

#include "kernels/simt/simt.h"

#define OF_STREAM ::orthofed::simt::Stream

namespace orthofed::gpu {
namespace {

template <class... P, class... A>
void launch(void (*kernel)(P...), const LaunchShape& shape, const simt::Stream& stream,
            const A&... args) {
  simt::launch({shape.grid_x, shape.grid_y, shape.grid_z}, {shape.threads_x, shape.threads_y, 1},
               shape.shared_bytes, stream,
               [kernel, arguments = std::tuple<P...>(static_cast<P>(args)...)] {
                 std::apply(kernel, arguments);
               });
}

template <class T>
T* dynamic_shared() {
  return static_cast<T*>(simt::dynamic_shared());
}

}  // namespace
}  // namespace orthofed::gpu

#endif
