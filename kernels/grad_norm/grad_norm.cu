// The gradient norm on a GPU, in two launches: a block sums one chunk's squares into scratch
// memory, then one block adds the chunks and finishes the norm and the factor, where the optimiser
// will read them. Adapters are many and small, so the first launch is one wave of blocks whose time
// is mostly latency; 4 bytes and one fused multiply-add in double an element bound it beyond that.
#include "kernels/grad_norm/grad_norm.h"

#include "kernels/core/rows.cuh"

namespace orthofed::gpu {
namespace {

constexpr int kThreads = 256, kPack = 4;

__device__ double square(float g) {
  return double(g) * double(g);  // exact, and never overflows
}

__global__ void chunk_kernel(const GradientSpan<float>* gradients, int64_t count, double* partial) {
  const Chunk chunk = find_chunk(gradients, count, blockIdx.x);
  const float* g = gradients[chunk.item].data;
  double sum = 0;
  for (int64_t j = chunk.begin + kPack * int(threadIdx.x); j < chunk.end; j += kPack * kThreads) {
    const Pack<float, kPack> four = load_part<kPack>(g + j, chunk.end - j);
#pragma unroll
    for (int e = 0; e < kPack; ++e) sum += square(four[e]);
  }
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// partial [chunks].
__global__ void finish_kernel(const double* partial, int64_t chunks, const double* scale,
                              double max_norm, double* norm, double* factor) {
  double sum = 0;
  for (int64_t c = threadIdx.x; c < chunks; c += kThreads) sum += partial[c];
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) {
    *norm = *scale * sqrt(sum);
    *factor = gradient_factor(*norm, *scale, max_norm);
  }
}

}  // namespace

template <class T, class Stream>
void grad_norm(const GradientSpan<T>* gradients, int64_t count, int64_t chunks, const double* scale,
               double max_norm, double* norm, double* factor, const Stream& stream) {
  auto* partial = scratch_as<double>(stream, grad_norm_scratch(chunks));
  launch(chunk_kernel, {.grid_x = unsigned(chunks), .threads_x = kThreads}, stream, gradients,
         count, partial);
  launch(finish_kernel, {.threads_x = kThreads}, stream, partial, chunks, scale, max_norm, norm,
         factor);
}

template void grad_norm<float>(const GradientSpan<float>*, int64_t, int64_t, const double*, double,
                               double*, double*, const OF_STREAM&);

}  // namespace orthofed::gpu
