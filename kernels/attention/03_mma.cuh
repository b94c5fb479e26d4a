// 3, tensor cores: all products of a head by mma.m16n8k16 on what ldmatrix takes from shared
// memory; scores and probabilities stay in the registers of the warp that computed them, as factors
// of the next product. Keys are resident in shared memory where they fit, so that each byte of qkv
// is read once. bf16's production version.
//
// Probabilities come from exp2f, one instruction of the special function unit and a guard. For a
// score of 64 columns the tensor cores of an SM (capability 8.0) take 1/8 of a cycle; exp_'s twenty
// instructions would take 1/6 of one. P and dS are rounded to bf16 before the products that read
// them.
//
// kCols is head_dim rounded up to 32, 64, 80, 96 or 128. Shared memory is at most 99 KB.
#pragma once
#include "kernels/attention/head.cuh"
#include "kernels/attention/mma_tile.cuh"

namespace orthofed::gpu {
namespace {

inline constexpr size_t kMmaSharedBytes = 99 * 1024;
inline constexpr float kLog2E = 1.44269504088896f, kLn2 = 0.693147180559945f;

// Tokens are dealt to tiles of 16, the rows of an mma.
inline constexpr int kTileRows = 16;

constexpr int round_up_to_tile(int64_t n) {
  return int(ceil_div(n, kTileRows)) * kTileRows;
}

// --- Forward ----------------------------------------------------------------------------------

// A warp owns 16 queries at a time and meets the keys 64 at a time, by online softmax. Shared
// memory holds K and V of the keys and 16 rows of Q a warp, 66 KB for 197 tokens of 64 and 80 KB
// for 257 (7 and 6 warps). Keys that do not fit go by in parts of a size that leaves room for as
// many blocks an SM as its registers hold: one computes while another waits for its next part.
inline constexpr int kStepKeys = 64, kMaxForwardWarps = 8;

template <int kCols>
struct MmaForward {
  static constexpr int kBlocks = kCols <= 64 ? 2 : 1;  // that the registers of an SM hold
  static constexpr size_t kKeyBytes = 2 * MmaTile<kCols>::kRowBytes;
  static constexpr size_t kWarpBytes = kTileRows * MmaTile<kCols>::kRowBytes;

  int keys;    // in shared memory at a time
  int warps;   // of a block
  int rounds;  // groups of `warps` query tiles that a block takes in turn
  int blocks;  // a head

  explicit MmaForward(const AttentionShape& s) {
    const int64_t tiles = ceil_div(s.tokens, kTileRows);
    const int groups = int(ceil_div(tiles, kMaxForwardWarps));
    warps = int(ceil_div(tiles, groups));
    const bool resident = shared_bytes(round_up_to_tile(s.tokens)) <= kMmaSharedBytes;
    const size_t room = kMmaSharedBytes / kBlocks - warps * kWarpBytes;
    const int64_t limit = int64_t(room / kKeyBytes / kTileRows) * kTileRows;
    keys = round_up_to_tile(resident ? s.tokens : ceil_div(s.tokens, ceil_div(s.tokens, limit)));
    // With fewer heads than SMs, or with keys that are read again and again anyhow, a block for
    // each group.
    const bool split = !resident || s.batch * s.heads < 128;
    rounds = split ? 1 : groups;
    blocks = split ? groups : 1;
  }
  size_t shared_bytes(int64_t held) const {
    return size_t(held) * kKeyBytes + size_t(warps) * kWarpBytes;
  }
};

// Over the four lanes that share their rows.
__device__ inline float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, 1));
  return fmaxf(value, __shfl_xor_sync(kFullWarp, value, 2));
}
__device__ inline float quad_sum(float value) {
  value += __shfl_xor_sync(kFullWarp, value, 1);
  return value + __shfl_xor_sync(kFullWarp, value, 2);
}

template <int kCols>
__global__ void __launch_bounds__(32 * kMaxForwardWarps, MmaForward<kCols>::kBlocks)
    mma_forward_kernel(AttentionForward<bf16> x, float scale, MmaForward<kCols> plan) {
  constexpr int kPitch = MmaTile<kCols>::kPitch;
  const AttentionShape& s = x.shape;
  const Head head(s, blockIdx.x / plan.blocks);
  const int d = int(s.head_dim), tokens = int(s.tokens), threads = int(blockDim.x);
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const MmaTile<kCols> k{dynamic_shared<bf16>()};       // [plan.keys, kCols]
  const MmaTile<kCols> v{k.data + plan.keys * kPitch};  // [plan.keys, kCols]
  const MmaTile<kCols> q{v.data + plan.keys * kPitch};  // [16 a warp, kCols], O in the end
  const int own = warp * kTileRows;                     // this warp's first row of q
  const float base2 = scale * kLog2E;                   // scores in powers of 2

  for (int round = 0; round < plan.rounds; ++round) {
    const int group = int(blockIdx.x % plan.blocks) * plan.rounds + round;
    const int i0 = group * plan.warps * kTileRows + own;  // may be beyond the last query
    __syncwarp();                                         // O has been read
    q.start_load(own, kTileRows, x.qkv + head.q + i0 * s.ld_qkv, s.ld_qkv, tokens - i0, d, lane,
                 32);
    cp_async_commit();

    float o[kCols / 16][2][4] = {};
    float top[2] = {-INFINITY, -INFINITY};  // of rows g and g + 8
    float sum[2] = {};                      // this lane's share
    for (int j0 = 0; j0 < tokens; j0 += plan.keys) {
      const int keys = tokens - j0 < plan.keys ? tokens - j0 : plan.keys;
      if (round == 0 || plan.keys < tokens) {
        __syncthreads();  // everybody has read the last part
        const int64_t first = j0 * s.ld_qkv;
        k.start_load(0, round_up_to_tile(keys), x.qkv + head.k + first, s.ld_qkv, keys, d,
                     int(threadIdx.x), threads);
        v.start_load(0, round_up_to_tile(keys), x.qkv + head.v + first, s.ld_qkv, keys, d,
                     int(threadIdx.x), threads);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
      } else {
        cp_async_wait<0>();
        __syncwarp();
      }
      if (i0 >= tokens) continue;  // the whole warp
      for (int k0 = 0; k0 < keys; k0 += kStepKeys) {
        // S = Q K^T, 16 queries x 64 keys. Tiles of 16 keys that do not exist are left out.
        float p[kStepKeys / 16][2][4] = {};
#pragma unroll
        for (int c = 0; c < kCols / 16; ++c) {
          uint32_t a[4];
          load_a(a, q, own, 16 * c);
#pragma unroll
          for (int j = 0; j < kStepKeys / 16; ++j)
            if (k0 + 16 * j < keys) {
              uint32_t b[4];
              load_b_transposed(b, k, k0 + 16 * j, 16 * c);
              multiply_16(p[j], a, b);
            }
        }
        if (k0 + kStepKeys > keys) {
#pragma unroll
          for (int j = 0; j < kStepKeys / 8; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
              if (k0 + 8 * j + 2 * t + e % 2 >= keys) p[j / 2][j % 2][e] = -INFINITY;
        }
        // P = 2^(S - top): a new maximum rescales what was summed under the old one.
        float largest[2] = {top[0], top[1]};
#pragma unroll
        for (int j = 0; j < kStepKeys / 8; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float& score = p[j / 2][j % 2][e];
            score *= base2;
            largest[e / 2] = fmaxf(largest[e / 2], score);
          }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          largest[half] = quad_max(largest[half]);
          const float factor = exp2f(top[half] - largest[half]);
          top[half] = largest[half];
          sum[half] *= factor;
#pragma unroll
          for (int c = 0; c < kCols / 8; ++c) {
            o[c / 2][c % 2][2 * half] *= factor;
            o[c / 2][c % 2][2 * half + 1] *= factor;
          }
        }
#pragma unroll
        for (int j = 0; j < kStepKeys / 8; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float& probability = p[j / 2][j % 2][e];
            probability = exp2f(probability - top[e / 2]);
            sum[e / 2] += probability;
          }
          // O += P V
#pragma unroll
        for (int j = 0; j < kStepKeys / 16; ++j)
          if (k0 + 16 * j < keys) {
            uint32_t a[4];
            as_a(a, p[j]);
#pragma unroll
            for (int c = 0; c < kCols / 16; ++c) {
              uint32_t b[4];
              load_b(b, v, k0 + 16 * j, 16 * c);
              multiply_16(o[c], a, b);
            }
          }
      }
    }

    if (i0 >= tokens) continue;
    const float total[2] = {quad_sum(sum[0]), quad_sum(sum[1])};
    store_16_rows<kCols>(o, {1 / total[0], 1 / total[1]}, q, own, x.out + head.out + i0 * s.ld_out,
                         s.ld_out, tokens - i0, d);
    if (x.lse != nullptr && t == 0)
      for (int half = 0; half < 2; ++half)
        if (const int i = i0 + g + 8 * half; i < tokens)
          x.lse[head.lse + i] = top[half] * kLn2 + logf(total[half]);
  }
}

// --- Backward ---------------------------------------------------------------------------------
//
// One block a head. Each warp owns 16 keys, whose dK and dV stay in its registers while the queries
// go by, 32 at a time; with keys as rows, P^T and dS^T are at once what the products
// dV += P^T dO and dK += dS^T Q read. dQ sums over all keys: dS^T is handed over through shared
// memory, and the warps share out the 16 x 16 pieces of dQ. Keys that do not fit at once take a
// launch for each part, which adds to dQ in global memory, rounded each time.
//
// Shared memory: of each key a row of K, of V and 80 bytes of dS^T, of 32 queries rows of Q and dO;
// 76 KB for 197 tokens of 64. 257 tokens take two parts of 144 keys and 55 KB. There is one buffer
// of Q and dO: the next queries are on their way while dQ is computed from dS^T.

inline constexpr int kQueries = 32;

template <int kCols>
struct MmaBackward {
  // Each quarter of an SM has 16,384 registers for its share of the warps: 128 a thread for 16
  // warps, 168 for 12, 255 for 8. kCols of them hold dK and dV, about 60 everything else.
  static constexpr int kMaxWarps = kCols <= 64 ? 16 : kCols <= 80 ? 12 : 8;
  static constexpr size_t kKeyBytes = 2 * MmaTile<kCols>::kRowBytes + MmaTile<kQueries>::kRowBytes;
  static constexpr size_t kQueryBytes =
      kQueries * (2 * MmaTile<kCols>::kRowBytes + 2 * sizeof(float));
};

// Keys held at a time, by the warps' registers and in shared memory.
template <int kCols>
int plan_mma_backward(const AttentionShape& s) {
  using Limits = MmaBackward<kCols>;
  constexpr int64_t kFit =
      int64_t((kMmaSharedBytes - Limits::kQueryBytes) / Limits::kKeyBytes) / kTileRows;
  constexpr int64_t kTiles = kFit < Limits::kMaxWarps ? kFit : Limits::kMaxWarps;
  const int64_t parts = ceil_div(s.tokens, kTiles * kTileRows);
  return round_up_to_tile(ceil_div(s.tokens, parts));
}

// Of kQueries queries: starts to load Q and dO, and computes D_i = sum_d dO_id O_id and lse_i, in
// powers of 2. A query that does not exist has lse = infinity, hence probability 0.
template <int kCols>
__device__ void start_load_queries(const AttentionBackward<bf16>& x, const Head& head, int i0,
                                   const MmaTile<kCols>& q, const MmaTile<kCols>& dout,
                                   float* row_dot, float* row_lse) {
  const AttentionShape& s = x.shape;
  const int d = int(s.head_dim);
  const bf16* grad = x.dout + head.out + i0 * s.ld_out;  // [queries, d]
  const bf16* out = x.out + head.out + i0 * s.ld_out;    // [queries, d]
  q.start_load(0, kQueries, x.qkv + head.q + i0 * s.ld_qkv, s.ld_qkv, s.tokens - i0, d,
               int(threadIdx.x), int(blockDim.x));
  dout.start_load(0, kQueries, grad, s.ld_out, s.tokens - i0, d, int(threadIdx.x), int(blockDim.x));
  cp_async_commit();
  // 8 lanes a row, 4 rows a warp: as kQueries is a multiple of 4, all lanes are in the loop or
  // none.
#pragma unroll 1
  for (int i = int(threadIdx.x) / 8; i < kQueries; i += int(blockDim.x) / 8) {
    const bool exists = i0 + i < s.tokens;
    float sum = 0;
    for (int c = int(threadIdx.x) % 8 * 4; exists && c < d; c += 32) {
      const Pack<bf16, 4> a = load_part<4>(grad + i * s.ld_out + c, d - c);
      const Pack<bf16, 4> b = load_part<4>(out + i * s.ld_out + c, d - c);
#pragma unroll
      for (int e = 0; e < 4; ++e) sum += float(a[e]) * float(b[e]);
    }
#pragma unroll
    for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(kFullWarp, sum, step);
    if (threadIdx.x % 8 == 0) {
      row_dot[i] = sum;
      row_lse[i] = exists ? x.lse[head.lse + i0 + i] * kLog2E : INFINITY;
    }
  }
}

template <int kCols>
__global__ void __launch_bounds__(32 * MmaBackward<kCols>::kMaxWarps, 1)
    mma_backward_kernel(AttentionBackward<bf16> x, float scale, int part, int j0) {
  constexpr int kPitch = MmaTile<kCols>::kPitch;
  const AttentionShape& s = x.shape;
  const Head head(s, blockIdx.x);
  const int d = int(s.head_dim), tokens = int(s.tokens);
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const float base2 = scale * kLog2E;  // scores in powers of 2

  const MmaTile<kCols> k{dynamic_shared<bf16>()};               // [part, kCols]
  const MmaTile<kCols> v{k.data + part * kPitch};               // [part, kCols]
  const MmaTile<kCols> q{v.data + part * kPitch};               // [kQueries, kCols]
  const MmaTile<kCols> dout{q.data + kQueries * kPitch};        // [kQueries, kCols]
  const MmaTile<kQueries> ds_t{dout.data + kQueries * kPitch};  // [part, kQueries]
  float* row_dot =
      reinterpret_cast<float*>(ds_t.data + part * MmaTile<kQueries>::kPitch);  // [kQueries]
  float* row_lse = row_dot + kQueries;                                         // [kQueries]

  const int keys = tokens - j0 < part ? tokens - j0 : part;
  const int row = warp * kTileRows;  // this warp's first key
  const int64_t first = j0 * s.ld_qkv;
  k.start_load(0, round_up_to_tile(keys), x.qkv + head.k + first, s.ld_qkv, keys, d,
               int(threadIdx.x), int(blockDim.x));
  v.start_load(0, round_up_to_tile(keys), x.qkv + head.v + first, s.ld_qkv, keys, d,
               int(threadIdx.x), int(blockDim.x));
  start_load_queries(x, head, 0, q, dout, row_dot, row_lse);

  float dk[kCols / 16][2][4] = {}, dv[kCols / 16][2][4] = {};
  for (int i0 = 0; i0 < tokens; i0 += kQueries) {
    cp_async_wait<0>();
    __syncthreads();  // Q, dO, D and lse are there, and the last dS^T has been read
    if (row < keys) {
#pragma unroll 1
      for (int i = 0; i < kQueries; i += 16) {
        // S^T = K Q^T and dP^T = V dO^T, 16 keys x 16 queries
        float p[2][4] = {}, ds[2][4] = {};
        multiply_rows(p, k, row, q, i);
        multiply_rows(ds, v, row, dout, i);
        // P^T = 2^(S^T - lse),  dS^T = P^T (dP^T - D)
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int query = i + 8 * n + 2 * t + e % 2;
            const bool exists = row + g + e / 2 * 8 < keys;
            p[n][e] = exists ? exp2f(p[n][e] * base2 - row_lse[query]) : 0.0f;
            ds[n][e] = p[n][e] * (ds[n][e] - row_dot[query]);
          }
        uint32_t a[4], b[4];
        as_a(a, p);
#pragma unroll
        for (int c = 0; c < kCols / 16; ++c) {  // dV += P^T dO
          load_b(b, dout, i, 16 * c);
          multiply_16(dv[c], a, b);
        }
        as_a(a, ds);
#pragma unroll
        for (int c = 0; c < kCols / 16; ++c) {  // dK += dS^T Q
          load_b(b, q, i, 16 * c);
          multiply_16(dk[c], a, b);
        }
#pragma unroll
        for (int r = 0; r < 4; ++r)  // rows g, g + 8; columns 2t, 2t + 8
          *reinterpret_cast<uint32_t*>(ds_t.at(row + g + r % 2 * 8, i + r / 2 * 8) + 2 * t) = a[r];
      }
    }
    __syncthreads();  // dS^T is there, and Q, dO, D and lse have been read
    if (i0 + kQueries < tokens)
      start_load_queries(x, head, i0 + kQueries, q, dout, row_dot, row_lse);

    // dQ = dS K, in pieces of 16 x 16
    for (int piece = warp; piece < kQueries / 16 * (kCols / 16); piece += int(blockDim.x) / 32) {
      const int i = piece / (kCols / 16) * 16, column = piece % (kCols / 16) * 16;
      float dq[2][4] = {};
#pragma unroll 1
      for (int j = 0; j < keys; j += kTileRows) {
        uint32_t a[4], b[4];
        load_a_transposed(a, ds_t, j, i);
        load_b(b, k, j, column);
        multiply_16(dq, a, b);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int query = i0 + i + g + 8 * half;
        if (query >= tokens) continue;
        bf16* to = x.dqkv + head.q + query * s.ld_qkv + column + 2 * t;
        const int left = d - column - 2 * t;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const Pack<bf16, 2> before =
              load_part<2>(static_cast<const bf16*>(to) + 8 * n, j0 == 0 ? 0 : left - 8 * n);
          Pack<bf16, 2> after;
#pragma unroll
          for (int e = 0; e < 2; ++e) after[e] = float(before[e]) + scale * dq[n][2 * half + e];
          store_part(to + 8 * n, after, left - 8 * n);
        }
      }
    }
  }

  if (row >= keys) return;
  const int64_t at = (j0 + row) * s.ld_qkv;
  // By way of this warp's rows of V, which nobody else reads.
  store_16_rows<kCols>(dk, {scale, scale}, v, row, x.dqkv + head.k + at, s.ld_qkv, keys - row, d);
  store_16_rows<kCols>(dv, {1, 1}, v, row, x.dqkv + head.v + at, s.ld_qkv, keys - row, d);
}

struct Mma {
  template <class Stream>
  static void run(const AttentionForward<bf16>& x, const Stream& stream) {
    with_columns(x.shape, [&]<int kCols>() {
      const MmaForward<kCols> plan(x.shape);
      launch(mma_forward_kernel<kCols>,
             {.grid_x = blocks(x.shape, plan.blocks),
              .threads_x = 32 * unsigned(plan.warps),
              .shared_bytes = plan.shared_bytes(plan.keys)},
             stream, x, float(x.scale), plan);
    });
  }
  template <class Stream>
  static void run(const AttentionBackward<bf16>& x, const Stream& stream) {
    with_columns(x.shape, [&]<int kCols>() {
      using Limits = MmaBackward<kCols>;
      const int part = plan_mma_backward<kCols>(x.shape);
      for (int64_t j0 = 0; j0 < x.shape.tokens; j0 += part)
        launch(mma_backward_kernel<kCols>,
               {.grid_x = blocks(x.shape, 1),
                .threads_x = 32 * unsigned(part / kTileRows),
                .shared_bytes = Limits::kKeyBytes * size_t(part) + Limits::kQueryBytes},
               stream, x, float(x.scale), part, j0);
    });
  }

 private:
  // run<kCols>() with head_dim rounded up to columns that there is a kernel for.
  template <class Run>
  static void with_columns(const AttentionShape& s, const Run& run) {
    OF_CHECK(s.head_dim <= kMaxTiledHeadDim, "attention: this version takes head_dim 1..128");
    if (s.batch * s.heads * s.tokens == 0) return;
    if (s.head_dim <= 32) return run.template operator()<32>();
    if (s.head_dim <= 64) return run.template operator()<64>();
    if (s.head_dim <= 80) return run.template operator()<80>();
    if (s.head_dim <= 96) return run.template operator()<96>();
    return run.template operator()<128>();
  }
};

}  // namespace
}  // namespace orthofed::gpu
