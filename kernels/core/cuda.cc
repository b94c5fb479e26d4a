#include "kernels/core/cuda.h"

#include <string>

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

}  // namespace orthofed::cuda
