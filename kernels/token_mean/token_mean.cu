// Average pooling on a GPU. Forward: a block owns 128 columns of one image, a lane 4 of them; its 8
// warps take every 8th token, so that 8 rows are on their way at a time, and meet in shared memory.
// Backward: every element by itself, a warp 32 neighbouring packs of a row (core/rows.cuh). The
// bytes bound both.
#include "kernels/token_mean/token_mean.h"

#include "kernels/core/rows.cuh"

namespace orthofed::gpu {
namespace {

constexpr int kWarps = 8, N = 4, kColumns = 32 * N;

__global__ void forward_kernel(TokenMeanForward<float> a) {
  const TokenMeanShape& s = a.shape;
  __shared__ float parts[kWarps][kColumns];
  const int lane = int(threadIdx.x), warp = int(threadIdx.y);
  const unsigned across = unsigned(ceil_div(s.dim, kColumns));  // blocks side by side
  const int64_t b = blockIdx.x / across;
  const int64_t j = int64_t{blockIdx.x % across} * kColumns + lane * N;
  Pack<float, N> sum{};
  if (j < s.dim) {
#pragma unroll 4
    for (int64_t t = s.first + warp; t < s.tokens; t += kWarps) {
      const Pack<float, N> v = load_part<N>(a.x + (b * s.tokens + t) * a.ldx + j, s.dim - j);
#pragma unroll
      for (int e = 0; e < N; ++e) sum[e] += v[e];
    }
  }
#pragma unroll
  for (int e = 0; e < N; ++e) parts[warp][lane * N + e] = sum[e];
  __syncthreads();
  if (warp > 0 || j >= s.dim) return;
  for (int w = 1; w < kWarps; ++w)
#pragma unroll
    for (int e = 0; e < N; ++e) sum[e] += parts[w][lane * N + e];
#pragma unroll
  for (int e = 0; e < N; ++e) sum[e] /= float(s.tokens - s.first);
  store_part(a.y + b * a.ldy + j, sum, s.dim - j);
}

__global__ void backward_kernel(TokenMeanBackward<float> a) {
  const TokenMeanShape& s = a.shape;
  const float share = 1.0f / float(s.tokens - s.first);
  for_each_pack<N>(s.batch * s.tokens, s.dim, [&](int64_t i, int64_t j) {
    const bool counts = i % s.tokens >= s.first;
    Pack<float, N> d = load_part<N>(a.dy + i / s.tokens * a.lddy + j, s.dim - j);
#pragma unroll
    for (int e = 0; e < N; ++e) d[e] = counts ? d[e] * share : 0.0f;
    store_part(a.dx + i * a.lddx + j, d, s.dim - j);
  });
}

}  // namespace

template <class T, class Stream>
void token_mean_forward(const TokenMeanForward<T>& a, const Stream& stream) {
  check(a.shape);
  launch(forward_kernel,
         {.grid_x = unsigned(a.shape.batch * ceil_div(a.shape.dim, kColumns)),
          .threads_x = 32,
          .threads_y = kWarps},
         stream, a);
}

template <class T, class Stream>
void token_mean_backward(const TokenMeanBackward<T>& a, const Stream& stream) {
  check(a.shape);
  launch(backward_kernel, map_shape<N>(a.shape.batch * a.shape.tokens, a.shape.dim), stream, a);
}

template void token_mean_forward(const TokenMeanForward<float>&, const OF_STREAM&);
template void token_mean_backward(const TokenMeanBackward<float>&, const OF_STREAM&);

}  // namespace orthofed::gpu
