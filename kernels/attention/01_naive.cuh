// 1, naive: one warp a token. Each lane takes the score of one key whole, so that 32 keys go by at
// a time; then, with their probabilities in shared memory, the lanes share out the columns of the
// result. As the keys go by, a running maximum and sum are kept (online softmax, Milakov and
// Gimelshein, arXiv 1805.02867). Every product reads both factors from memory or cache.
#pragma once
#include "kernels/attention/head.cuh"
#include "kernels/core/math.h"

namespace orthofed::gpu {
namespace {

// A row of head_dim elements spread over a warp: lane l holds columns l, l + 32, ...
struct LaneColumns {
  float values[8] = {};

  template <class T>
  __device__ void add(float factor, const T* row, int cols) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int c = 32 * i + int(threadIdx.x);
      if (c < cols) values[i] += factor * float(row[c]);
    }
  }
  __device__ void multiply(float factor) {
#pragma unroll
    for (float& value : values) value *= factor;
  }
  template <class T>
  __device__ void store(float factor, T* row, int cols) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int c = 32 * i + int(threadIdx.x);
      if (c < cols) row[c] = T(factor * values[i]);
    }
  }
};

template <class T>
__device__ float dot(const T* a, const T* b, int cols) {
  float sum = 0;
  for (int c = 0; c < cols; ++c) sum += float(a[c]) * float(b[c]);
  return sum;
}

template <class T>
__global__ void naive_forward_kernel(AttentionForward<T> x, float scale) {
  const AttentionShape& s = x.shape;
  const Head head(s, blockIdx.x / s.tokens);
  const int64_t i = blockIdx.x % s.tokens;
  const int d = int(s.head_dim), lane = int(threadIdx.x);
  const T* q = x.qkv + head.q + i * s.ld_qkv;  // [d]
  const T* k = x.qkv + head.k;                 // [tokens, d]
  const T* v = x.qkv + head.v;                 // [tokens, d]

  __shared__ float shared_p[32];
  float top = -INFINITY, sum = 0;
  LaneColumns o;
  for (int64_t j0 = 0; j0 < s.tokens; j0 += 32) {
    const int keys = int(s.tokens - j0 < 32 ? s.tokens - j0 : 32);
    const float score = lane < keys ? scale * dot(q, k + (j0 + lane) * s.ld_qkv, d) : -INFINITY;
    // A new maximum rescales what was summed under the old one.
    const float before = top;
    top = max_or_nan(top, warp_max(score));
    const float p = lane < keys ? exp_(score - top) : 0.0f;
    sum = sum * exp_(before - top) + warp_sum(p);
    o.multiply(exp_(before - top));
    shared_p[lane] = p;
    __syncwarp();
    for (int j = 0; j < keys; ++j) o.add(shared_p[j], v + (j0 + j) * s.ld_qkv, d);
    __syncwarp();
  }
  o.store(1 / sum, x.out + head.out + i * s.ld_out, d);
  if (x.lse != nullptr && lane == 0) x.lse[head.lse + i] = top + logf(sum);
}

// A token's gradients have two passes: as a query it meets all keys, as a key all queries. So each
// sum has one owner, and S and dO V^T are computed twice.
template <class T>
__global__ void naive_backward_kernel(AttentionBackward<T> x, float scale) {
  const AttentionShape& s = x.shape;
  const Head head(s, blockIdx.x / s.tokens);
  const int64_t own = blockIdx.x % s.tokens;
  const int d = int(s.head_dim), lane = int(threadIdx.x);
  const T* q = x.qkv + head.q;     // [tokens, d]
  const T* k = x.qkv + head.k;     // [tokens, d]
  const T* v = x.qkv + head.v;     // [tokens, d]
  const T* o = x.out + head.out;   // [tokens, d]
  const T* g = x.dout + head.out;  // [tokens, d]
  const float* lse = x.lse + head.lse;

  const auto probability = [&](int64_t i, int64_t j) {
    return exp_(scale * dot(q + i * s.ld_qkv, k + j * s.ld_qkv, d) - lse[i]);
  };
  const auto row_dot = [&](int64_t i) { return dot(g + i * s.ld_out, o + i * s.ld_out, d); };
  const auto dp = [&](int64_t i, int64_t j) { return dot(g + i * s.ld_out, v + j * s.ld_qkv, d); };

  __shared__ float shared_p[32], shared_ds[32];
  LaneColumns dq;
  const float own_dot = row_dot(own);
  for (int64_t j0 = 0; j0 < s.tokens; j0 += 32) {
    const int keys = int(s.tokens - j0 < 32 ? s.tokens - j0 : 32);
    const int64_t j = j0 + lane;
    const float ds = lane < keys ? probability(own, j) * (dp(own, j) - own_dot) : 0.0f;
    shared_ds[lane] = ds;
    __syncwarp();
    for (int l = 0; l < keys; ++l) dq.add(shared_ds[l], k + (j0 + l) * s.ld_qkv, d);
    __syncwarp();
  }
  dq.store(scale, x.dqkv + head.q + own * s.ld_qkv, d);

  LaneColumns dk, dv;
  for (int64_t i0 = 0; i0 < s.tokens; i0 += 32) {
    const int queries = int(s.tokens - i0 < 32 ? s.tokens - i0 : 32);
    const int64_t i = i0 + lane;
    const float p = lane < queries ? probability(i, own) : 0.0f;
    const float ds = lane < queries ? p * (dp(i, own) - row_dot(i)) : 0.0f;
    shared_p[lane] = p;
    shared_ds[lane] = ds;
    __syncwarp();
    for (int l = 0; l < queries; ++l) {
      dv.add(shared_p[l], g + (i0 + l) * s.ld_out, d);
      dk.add(shared_ds[l], q + (i0 + l) * s.ld_qkv, d);
    }
    __syncwarp();
  }
  dk.store(scale, x.dqkv + head.k + own * s.ld_qkv, d);
  dv.store(1, x.dqkv + head.v + own * s.ld_qkv, d);
}

struct Naive {
  template <class T, class Stream>
  static void run(const AttentionForward<T>& x, const Stream& stream) {
    launch(naive_forward_kernel<T>, {.grid_x = blocks(x.shape, x.shape.tokens), .threads_x = 32},
           stream, x, float(x.scale));
  }
  template <class T, class Stream>
  static void run(const AttentionBackward<T>& x, const Stream& stream) {
    launch(naive_backward_kernel<T>, {.grid_x = blocks(x.shape, x.shape.tokens), .threads_x = 32},
           stream, x, float(x.scale));
  }
};

}  // namespace
}  // namespace orthofed::gpu
