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

__global__ void chunk_kernel(GradNorm<float> a, double* partial) {
  const Chunk chunk = find_chunk(a.gradients, a.count, blockIdx.x);
  const float* g = a.gradients[chunk.item].data;
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
__global__ void finish_kernel(GradNorm<float> a, const double* partial) {
  double sum = 0;
  for (int64_t c = threadIdx.x; c < a.chunks; c += kThreads) sum += partial[c];
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) {
    *a.norm = *a.scale * sqrt(sum);
    *a.factor = gradient_factor(*a.norm, *a.scale, a.max_norm);
  }
}

}  // namespace

template <class T, class Stream>
void grad_norm(const GradNorm<T>& a, const Stream& stream) {
  auto* partial = scratch_as<double>(stream, grad_norm_scratch(a.chunks));
  launch(chunk_kernel, {.grid_x = unsigned(a.chunks), .threads_x = kThreads}, stream, a, partial);
  launch(finish_kernel, {.threads_x = kThreads}, stream, a, partial);
}

template void grad_norm(const GradNorm<float>&, const OF_STREAM&);

}  // namespace orthofed::gpu
