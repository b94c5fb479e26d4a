// 2, shared-memory tiles: a block takes 64 queries and lets the keys go by in tiles of 32, so that
// what comes from memory is used 64 times; a thread computes 4 x 4 scores from 8 packs, so that
// what comes from shared memory is used 4 times. In fp32 this is the production version.
//
// A warp owns 16 rows. Lane 8y + x holds, of a tile of scores, rows y, y + 4, y + 8, y + 12 and
// columns x, x + 8, x + 16, x + 24, and of a result the same rows and columns 4x to 4x + 3 of every
// 32. Hence a row's maximum and sum are a matter of 8 lanes, and the probabilities, which change
// hands through shared memory, never leave their warp: only the tiles of keys need barriers.
//
// Rows in shared memory have a pitch of 4 (mod 32) floats: 8 neighbouring rows read by packs of 4
// meet all 32 banks once.
//
// Shared memory in floats, with pitch = 4 + head_dim rounded up to 32: forward 128 pitch + 64 * 36,
// which is 77 KB for head sizes above 96; backward the same with 64 rows for each of four operands
// (192 pitch + 64 * 36, 86 KB for 96), or with 32 own rows above 96 (128 pitch + 32 * 36, 72 KB).
#pragma once
#include "kernels/attention/head.cuh"
#include "kernels/core/math.h"
#include "kernels/core/rows.cuh"

namespace orthofed::gpu {
namespace {

inline constexpr int kTileKeys = 32, kScorePitch = kTileKeys + 4;

constexpr int tile_pitch(int groups) {
  return 32 * groups + 4;
}

// to [kRows, pitch] = scale * from [count, cols], zeros around.
template <int kGroups, int kRows, int kThreads, class T>
__device__ void load_tile(float* to, const T* from, int64_t ld, int64_t count, int cols,
                          float scale = 1) {
  constexpr int kPacks = 8 * kGroups;  // a row
  for (int e = int(threadIdx.x); e < kRows * kPacks; e += kThreads) {
    const int i = e / kPacks, j = e % kPacks * 4;
    const Pack<T, 4> in = load_part<4>(from + i * ld + j, i < count ? cols - j : 0);
    Pack<float, 4> out;
#pragma unroll
    for (int c = 0; c < 4; ++c) out[c] = scale * float(in[c]);
    store_pack(to + i * tile_pitch(kGroups) + j, out);
  }
}

// This lane's place in its warp's 16 rows.
struct Place {
  int row, x;  // its rows are row, row + 4, row + 8, row + 12 of the block's tile
  __device__ Place()
      : row(int(threadIdx.x) / 32 * 16 + int(threadIdx.x) % 32 / 8), x(int(threadIdx.x) % 8) {}
};

// s [4, 4] of this lane = A B^T, where A [rows, pitch] and B [kTileKeys, pitch] are in shared
// memory.
template <int kGroups>
__device__ void multiply_scores(float (&s)[4][4], const float* a, const float* b, Place at) {
  constexpr int kPitch = tile_pitch(kGroups);
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) s[i][j] = 0;
#pragma unroll 1  // the body is long enough, and registers are few
  for (int c = 0; c < 32 * kGroups; c += 4) {
    Pack<float, 4> rows[4], columns[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      rows[i] = load_pack<4>(a + (at.row + 4 * i) * kPitch + c);
      columns[i] = load_pack<4>(b + (at.x + 8 * i) * kPitch + c);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[i][j] += rows[i][e] * columns[j][e];
  }
}

// This lane's share of a result of head_dim columns.
template <int kGroups>
struct TileSum {
  float values[4][kGroups][4] = {};

  // += P B, where P [rows, kTileKeys] is handed over by the warp's lanes through `scores` [rows,
  // kScorePitch], and B [kTileKeys, pitch] is in shared memory.
  __device__ void add_product(const float (&p)[4][4], float* scores, const float* b, Place at) {
    __syncwarp();  // the last product has been read
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) scores[(at.row + 4 * i) * kScorePitch + at.x + 8 * j] = p[i][j];
    __syncwarp();
#pragma unroll 1
    for (int j = 0; j < kTileKeys; j += 4) {
      Pack<float, 4> factors[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        factors[i] = load_pack<4>(scores + (at.row + 4 * i) * kScorePitch + j);
#pragma unroll
      for (int e = 0; e < 4; ++e)
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          const Pack<float, 4> row =
              load_pack<4>(b + (j + e) * tile_pitch(kGroups) + 32 * g + 4 * at.x);
#pragma unroll
          for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int c = 0; c < 4; ++c) values[i][g][c] += factors[i][e] * row[c];
        }
    }
  }

  __device__ void multiply_row(int i, float factor) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
#pragma unroll
      for (int c = 0; c < 4; ++c) values[i][g][c] *= factor;
  }

  template <class T>
  __device__ void store_row(int i, T* row, int cols, Place at) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int j = 32 * g + 4 * at.x;
      Pack<T, 4> out;
#pragma unroll
      for (int c = 0; c < 4; ++c) out[c] = T(values[i][g][c]);
      store_part(row + j, out, cols - j);
    }
  }
};

// A reduction over the 8 lanes that share their rows.
__device__ inline float row_max(float value) {
  for (int step = 4; step > 0; step /= 2)
    value = max_or_nan(value, __shfl_xor_sync(kFullWarp, value, step));
  return value;
}
__device__ inline float row_sum(float value) {
  for (int step = 4; step > 0; step /= 2) value += __shfl_xor_sync(kFullWarp, value, step);
  return value;
}

inline constexpr int kForwardRows = 64, kForwardThreads = 128;

template <int kGroups>
constexpr size_t tiles_forward_bytes() {
  return sizeof(float) *
         ((kForwardRows + 2 * kTileKeys) * tile_pitch(kGroups) + kForwardRows * kScorePitch);
}

template <class T, int kGroups>
__global__ void __launch_bounds__(kForwardThreads)
    tiles_forward_kernel(AttentionForward<T> x, float scale) {
  constexpr int kPitch = tile_pitch(kGroups);
  const AttentionShape& s = x.shape;
  const int64_t tiles = ceil_div(s.tokens, kForwardRows);
  const Head head(s, blockIdx.x / tiles);
  const int64_t i0 = blockIdx.x % tiles * kForwardRows;
  const int d = int(s.head_dim);
  const Place at;

  float* q = dynamic_shared<float>();      // [kForwardRows, kPitch]
  float* k = q + kForwardRows * kPitch;    // [kTileKeys, kPitch]
  float* v = k + kTileKeys * kPitch;       // [kTileKeys, kPitch]
  float* scores = v + kTileKeys * kPitch;  // [kForwardRows, kScorePitch]
  load_tile<kGroups, kForwardRows, kForwardThreads>(q, x.qkv + head.q + i0 * s.ld_qkv, s.ld_qkv,
                                                    s.tokens - i0, d, scale);

  TileSum<kGroups> o;
  float top[4], sum[4];  // of each row; the sum is this lane's share
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    top[i] = -INFINITY;
    sum[i] = 0;
  }
  for (int64_t j0 = 0; j0 < s.tokens; j0 += kTileKeys) {
    if (j0 > 0) __syncthreads();  // everybody has read the last tiles
    load_tile<kGroups, kTileKeys, kForwardThreads>(k, x.qkv + head.k + j0 * s.ld_qkv, s.ld_qkv,
                                                   s.tokens - j0, d);
    load_tile<kGroups, kTileKeys, kForwardThreads>(v, x.qkv + head.v + j0 * s.ld_qkv, s.ld_qkv,
                                                   s.tokens - j0, d);
    __syncthreads();
    float p[4][4];  // scores, then probabilities relative to the maximum so far
    multiply_scores<kGroups>(p, q, k, at);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float largest = top[i];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (j0 + at.x + 8 * j >= s.tokens) p[i][j] = -INFINITY;
        largest = max_or_nan(largest, p[i][j]);
      }
      largest = row_max(largest);
      const float factor = exp_(top[i] - largest);
      top[i] = largest;
      sum[i] *= factor;
      o.multiply_row(i, factor);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        p[i][j] = exp_(p[i][j] - largest);
        sum[i] += p[i][j];
      }
    }
    o.add_product(p, scores, v, at);
  }

#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float total = row_sum(sum[i]);
    const int64_t row = i0 + at.row + 4 * i;
    if (row >= s.tokens) continue;
    o.multiply_row(i, 1 / total);
    o.store_row(i, x.out + head.out + row * s.ld_out, d, at);
    if (x.lse != nullptr && at.x == 0) x.lse[head.lse + row] = top[i] + logf(total);
  }
}

// Backward twice over: blocks that own queries let the keys go by and sum dQ = dS K, blocks that
// own keys let the queries go by and sum dV = P^T dO and dK = dS^T Q. In both, with own rows A
// (and B) and passing rows C (and D), S = A C^T and dP = B D^T:
//   own queries  A = Q, B = dO, C = K, D = V;    own keys  A = K, B = V, C = Q, D = dO.
// So each sum stays in the registers of its one owner, at the price of computing S and dP twice.
enum class Own { queries, keys };

// Warps a block: 64 own rows do not fit into shared memory four times above 96 columns.
constexpr int backward_warps(int groups) {
  return groups <= 3 ? 4 : 2;
}

template <int kGroups>
constexpr size_t tiles_backward_bytes() {
  constexpr int kRows = 16 * backward_warps(kGroups);
  return sizeof(float) * (2 * (kRows + kTileKeys) * tile_pitch(kGroups) + kRows * kScorePitch);
}

// dots [kRows] = sum_d dO_id O_id and lse [kRows] of `count` queries. A query that does not exist
// has lse = infinity, hence probability 0.
template <int kRows, int kWarps, class T>
__device__ void load_row_terms(float* dots, float* lses, const AttentionBackward<T>& x,
                               const Head& head, int64_t i0) {
  const AttentionShape& s = x.shape;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  for (int i = warp; i < kRows; i += kWarps) {
    const bool exists = i0 + i < s.tokens;
    const int64_t at = head.out + (i0 + i) * s.ld_out;
    float sum = 0;
    for (int64_t c = lane; exists && c < s.head_dim; c += 32)
      sum += float(x.dout[at + c]) * float(x.out[at + c]);
    sum = warp_sum(sum);
    if (lane == 0) {
      dots[i] = sum;
      lses[i] = exists ? x.lse[head.lse + i0 + i] : INFINITY;
    }
  }
}

// Two blocks an SM are asked for: left to itself, ptxas spills for more, which shared memory would
// not hold.
template <class T, int kGroups, Own kOwn>
__global__ void __launch_bounds__(32 * backward_warps(kGroups), 2)
    tiles_backward_kernel(AttentionBackward<T> x, float scale) {
  constexpr bool kQueries = kOwn == Own::queries;
  constexpr int kWarps = backward_warps(kGroups), kRows = 16 * kWarps, kThreads = 32 * kWarps;
  constexpr int kPitch = tile_pitch(kGroups);
  const AttentionShape& s = x.shape;
  const int64_t tiles = ceil_div(s.tokens, kRows);
  const Head head(s, blockIdx.x / tiles);
  const int64_t i0 = blockIdx.x % tiles * kRows;
  const int d = int(s.head_dim);
  const Place at;

  float* a = dynamic_shared<float>();      // [kRows, kPitch]
  float* b = a + kRows * kPitch;           // [kRows, kPitch]
  float* c = b + kRows * kPitch;           // [kTileKeys, kPitch]
  float* e = c + kTileKeys * kPitch;       // [kTileKeys, kPitch], D above
  float* scores = e + kTileKeys * kPitch;  // [kRows, kScorePitch]
  __shared__ float dots[kRows > kTileKeys ? kRows : kTileKeys];
  __shared__ float lses[kRows > kTileKeys ? kRows : kTileKeys];

  const auto load_queries = [&]<int kCount>(float* q, float* dout, int64_t row) {
    load_tile<kGroups, kCount, kThreads>(q, x.qkv + head.q + row * s.ld_qkv, s.ld_qkv,
                                         s.tokens - row, d, scale);
    load_tile<kGroups, kCount, kThreads>(dout, x.dout + head.out + row * s.ld_out, s.ld_out,
                                         s.tokens - row, d);
    load_row_terms<kCount, kWarps>(dots, lses, x, head, row);
  };
  const auto load_keys = [&]<int kCount>(float* k, float* v, int64_t row) {
    load_tile<kGroups, kCount, kThreads>(k, x.qkv + head.k + row * s.ld_qkv, s.ld_qkv,
                                         s.tokens - row, d);
    load_tile<kGroups, kCount, kThreads>(v, x.qkv + head.v + row * s.ld_qkv, s.ld_qkv,
                                         s.tokens - row, d);
  };
  if constexpr (kQueries)
    load_queries.template operator()<kRows>(a, b, i0);
  else
    load_keys.template operator()<kRows>(a, b, i0);

  TileSum<kGroups> first, second;  // dQ; or dV and dK
  for (int64_t j0 = 0; j0 < s.tokens; j0 += kTileKeys) {
    if (j0 > 0) __syncthreads();  // everybody has read the last tiles
    if constexpr (kQueries)
      load_keys.template operator()<kTileKeys>(c, e, j0);
    else
      load_queries.template operator()<kTileKeys>(c, e, j0);
    __syncthreads();
    float p[4][4], ds[4][4];
    multiply_scores<kGroups>(p, a, c, at);
    multiply_scores<kGroups>(ds, b, e, at);
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int query = kQueries ? at.row + 4 * i : at.x + 8 * j;
        p[i][j] = j0 + at.x + 8 * j < s.tokens ? exp_(p[i][j] - lses[query]) : 0.0f;
        ds[i][j] = p[i][j] * (ds[i][j] - dots[query]);
      }
    if constexpr (kQueries) {
      first.add_product(ds, scores, c, at);
    } else {
      first.add_product(p, scores, e, at);
      second.add_product(ds, scores, c, at);
    }
  }

#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = i0 + at.row + 4 * i;
    if (row >= s.tokens) continue;
    if constexpr (kQueries) {
      first.multiply_row(i, scale);
      first.store_row(i, x.dqkv + head.q + row * s.ld_qkv, d, at);
    } else {
      first.store_row(i, x.dqkv + head.v + row * s.ld_qkv, d, at);
      second.store_row(i, x.dqkv + head.k + row * s.ld_qkv, d, at);  // Q was scaled
    }
  }
}

struct Tiles {
  template <class T, class Stream>
  static void run(const AttentionForward<T>& x, const Stream& stream) {
    with_groups(x.shape, [&]<int kGroups>() {
      launch(tiles_forward_kernel<T, kGroups>,
             {.grid_x = blocks(x.shape, ceil_div(x.shape.tokens, kForwardRows)),
              .threads_x = kForwardThreads,
              .shared_bytes = tiles_forward_bytes<kGroups>()},
             stream, x, float(x.scale));
    });
  }
  template <class T, class Stream>
  static void run(const AttentionBackward<T>& x, const Stream& stream) {
    with_groups(x.shape, [&]<int kGroups>() {
      constexpr int kWarps = backward_warps(kGroups);
      const LaunchShape shape{.grid_x = blocks(x.shape, ceil_div(x.shape.tokens, 16 * kWarps)),
                              .threads_x = 32 * kWarps,
                              .shared_bytes = tiles_backward_bytes<kGroups>()};
      launch(tiles_backward_kernel<T, kGroups, Own::queries>, shape, stream, x, float(x.scale));
      launch(tiles_backward_kernel<T, kGroups, Own::keys>, shape, stream, x, float(x.scale));
    });
  }

 private:
  // run<g>() for g groups of 32 columns.
  template <class Run>
  static void with_groups(const AttentionShape& s, const Run& run) {
    OF_CHECK(s.head_dim <= kMaxTiledHeadDim, "attention: this version takes head_dim 1..128");
    switch (ceil_div(s.head_dim, 32)) {
      case 1:
        return run.template operator()<1>();
      case 2:
        return run.template operator()<2>();
      case 3:
        return run.template operator()<3>();
      default:
        return run.template operator()<4>();
    }
  }
};

}  // namespace
}  // namespace orthofed::gpu
