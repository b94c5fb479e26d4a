#include "kernels/core/cuda.h"

#include <string>

#include "kernels/core/cuda_device.h"

namespace orthofed::cuda {

void fail(cudaError_t error, const char* call, const char* file, int line) {
  throw Error(std::string(file) + ":" + std::to_string(line) + ": " + call + ": " +
              cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")");
}

StreamHandle make_stream() {
  cudaStream_t stream = nullptr;
  OF_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return StreamHandle(stream);
}

EventHandle make_event() {
  cudaEvent_t event = nullptr;
  OF_CUDA_CHECK(cudaEventCreate(&event));
  return EventHandle(event);
}

int device_count() noexcept {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  (void)cudaGetLastError();  // no driver, or no device: both mean that there is no GPU
  return 0;
}

void* allocate(size_t bytes) {
  void* memory = nullptr;
  OF_CUDA_CHECK(cudaMalloc(&memory, bytes == 0 ? 1 : bytes));
  return memory;
}

void* allocate_managed(size_t bytes) {
  void* memory = nullptr;
  OF_CUDA_CHECK(cudaMallocManaged(&memory, bytes == 0 ? 1 : bytes));
  return memory;
}

void release(void* memory) noexcept {
  (void)cudaFree(memory);
}

void copy_rows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
               size_t rows, const Stream& stream) {
  if (width == 0 || rows == 0) return;
  OF_CUDA_CHECK(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, rows, cudaMemcpyDefault,
                                  static_cast<cudaStream_t>(stream.handle)));
  synchronize(stream);
}

void zero_rows(void* data, size_t pitch, size_t width, size_t rows, const Stream& stream) {
  if (width == 0 || rows == 0) return;
  OF_CUDA_CHECK(
      cudaMemset2DAsync(data, pitch, 0, width, rows, static_cast<cudaStream_t>(stream.handle)));
}

void synchronize(const Stream& stream) {
  OF_CUDA_CHECK(cudaStreamSynchronize(static_cast<cudaStream_t>(stream.handle)));
}

double seconds_of(const Stream& stream, const std::function<void()>& work) {
  const auto queued_on = static_cast<cudaStream_t>(stream.handle);
  const EventHandle begin = make_event(), end = make_event();
  OF_CUDA_CHECK(cudaEventRecord(begin.get(), queued_on));
  work();
  OF_CUDA_CHECK(cudaEventRecord(end.get(), queued_on));
  OF_CUDA_CHECK(cudaEventSynchronize(end.get()));
  float milliseconds = 0;
  OF_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()));
  return 1e-3 * double(milliseconds);
}

}  // namespace orthofed::cuda
