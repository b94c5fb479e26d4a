// Low-rank products on a GPU: tensor cores, one pass over the activations.
//
//   contract   sums over an activation matrix X [rows, cols] as it streams by, in one direction or
//              in both at once:
//                across  S [rows, rank] = X M     (lora_down, du of lora_up_backward)
//                down    D [cols, rank] = X^T V   (db, da)
//   fold       adds up the blocks' partial sums of D
//   expand     Y [rows, cols] += V M^T, M [cols, rank]   (lora_up, dx of lora_down_backward)
//   merge      W + (scale B) A, elementwise in fp32; scale: scale B likewise
//
// Bound by memory: 2 to 4 multiply-adds a byte at rank 16, but 16 a CUDA core and byte would still
// be too many for the memory's speed, hence tensor cores. They multiply bf16 only, so an fp32
// number enters as a sum of bf16 pieces, each the rounded rest of those before (Henry, Tang,
// Heinecke, arXiv 1904.06376): two for an adapter that meets bf16 activations, three for both
// operands in fp32, which is then exact to 2^-24. Products of pieces below the last one's weight
// are left out.
//
// contract: a block owns up to 384 rows and goes over their columns in tiles of 64 x 64, columns
// outermost: so D of 64 columns stays in registers until its rows are done, S of all the block's
// rows in shared memory, and V, too, which every column tile needs again. Tiles arrive by cp.async,
// two or three ahead. 4 warps; warp w makes rows 16w.. of S and rows 16w.. of D from the same tile,
// read once as it is and once transposed. D leaves as one partial sum a block: 4 rank / rows of a
// block times the bytes of X in bf16, an eighth at rank 16 and 384 rows, most of it in cache.
#include "kernels/lora/lora.h"

#include <string>
#include <type_traits>

#include "kernels/core/check.h"
#include "kernels/core/fold.cuh"
#include "kernels/core/mma.cuh"
#include "kernels/core/rows.cuh"

namespace orthofed::gpu {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kTile = 16 * kWarps;  // rows and columns of a tile
constexpr int kSteps = kTile / 16;  // a product's steps of 16 along a side of a tile
constexpr int64_t kMostRank = 256;  // what expand's and merge's shared memory holds
template <class T>
constexpr int kPitch = kTile + kFullPack<T>;  // of a tile: no bank conflicts in ldmatrix
template <class T>
constexpr int kPieces = sizeof(T) == 2 ? 1 : 3;  // of an activation
template <class T>
constexpr int kAdapterPieces = sizeof(T) == 2 ? 2 : 3;

// --- Operands of the tensor cores -------------------------------------------------------------

// Pairs of neighbours in v as registers of bf16 pairs, piece by piece.
template <int P, int N>
__device__ void split(const float (&v)[N], uint32_t (&pieces)[P][N / 2]) {
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    float low = v[2 * i], high = v[2 * i + 1];
#pragma unroll
    for (int p = 0; p < P; ++p) {
      pieces[p][i] = pack_bf16(low, high);
      low -= float(bf16(low));
      high -= float(bf16(high));
    }
  }
}

// d [16, 8] += A B from their pieces
template <int PA, int PB>
__device__ void multiply(float (&d)[4], const uint32_t (&a)[PA][4], const uint32_t (&b)[PB][2]) {
#pragma unroll
  for (int i = 0; i < PA; ++i)
#pragma unroll
    for (int j = 0; j < PB; ++j)
      if (i + j < PA || i + j < PB) mma_16x8x16(d, a[i], b[j]);
}

// An operand B [16 steps, 8 tiles] in shared memory, in the order in which lanes want it: a lane's
// two registers of a step, tile and piece side by side.
template <int P>
struct Operand {
  uint2* data;  // [P][steps][tiles][32]
  int steps, tiles;

  static size_t bytes(int64_t steps, int64_t tiles) {
    return size_t(P * steps * tiles) * 32 * sizeof(uint2);
  }

  // value(k, n): the element, 0 beyond the edge. Needs a barrier before and after.
  template <class Value>
  __device__ void stage(const Value& value) const {
    const int count = steps * tiles * 32;
    for (int e = int(threadIdx.x); e < count; e += kThreads) {
      const int g = e % 32 / 4, t = e % 4, n = e / 32 % tiles * 8 + g,
                k = e / 32 / tiles * 16 + 2 * t;
      const float v[4] = {value(k, n), value(k + 1, n), value(k + 8, n), value(k + 9, n)};
      uint32_t pieces[P][2];
      split(v, pieces);
#pragma unroll
      for (int p = 0; p < P; ++p) data[p * count + e] = make_uint2(pieces[p][0], pieces[p][1]);
    }
  }

  __device__ void load(uint32_t (&b)[P][2], int step, int tile) const {
    const int at = (step * tiles + tile) * 32 + int(threadIdx.x) % 32;
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const uint2 pair = data[p * steps * tiles * 32 + at];
      b[p][0] = pair.x;
      b[p][1] = pair.y;
    }
  }
};

// A [16, 16] = rows i.. and columns j.. of a tile of activations.
__device__ inline void load_as_is(uint32_t (&a)[1][4], const bf16* tile, int i, int j) {
  const int lane = int(threadIdx.x) % 32;
  ldmatrix_x4(a[0], tile + (i + lane % 16) * kPitch<bf16> + j + lane / 16 * 8);
}
__device__ inline void load_as_is(uint32_t (&a)[3][4], const float* tile, int i, int j) {
  const int g = int(threadIdx.x) % 32 / 4, t = int(threadIdx.x) % 4;
  const float* at = tile + (i + g) * kPitch<float> + j + 2 * t;
  constexpr int down = 8 * kPitch<float>;
  const float v[8] = {at[0], at[1], at[down],     at[down + 1],
                      at[8], at[9], at[down + 8], at[down + 9]};
  split(v, a);
}

// A [16, 16] = the transpose of the tile's rows i.. and columns j..
__device__ inline void load_transposed(uint32_t (&a)[1][4], const bf16* tile, int i, int j) {
  const int lane = int(threadIdx.x) % 32;
  ldmatrix_x4_trans(a[0],
                    tile + (i + lane / 16 * 8 + lane % 8) * kPitch<bf16> + j + lane / 8 % 2 * 8);
}
__device__ inline void load_transposed(uint32_t (&a)[3][4], const float* tile, int i, int j) {
  const int g = int(threadIdx.x) % 32 / 4, t = int(threadIdx.x) % 4;
  const float* at = tile + (i + 2 * t) * kPitch<float> + j + g;
  constexpr int down = kPitch<float>;
  const float v[8] = {at[0],        at[down],         at[8],           at[down + 8], at[8 * down],
                      at[9 * down], at[8 * down + 8], at[9 * down + 8]};
  split(v, a);
}

// --- contract ---------------------------------------------------------------------------------

template <class T>
struct Contraction {
  const T* x = nullptr;  // [rows, cols] pitch ldx; packed: rows are made of aligned 16-byte packs
  int64_t ldx = 0, rows = 0, cols = 0, block_rows = 0;
  int rank = 0;
  bool packed = false;
  // across: s [rows, rank] = scale * (x M), M(c, r) = m[c * m_col + r * m_rank]; scale null: 1
  const float *m = nullptr, *scale = nullptr;
  int64_t m_col = 0, m_rank = 0;
  T* s = nullptr;
  int64_t lds = 0;
  // down: (x^T v)(c, r) over the rows of block i in d[i * d_block + c * d_col + r * d_rank]
  const T* v = nullptr;
  int64_t ldv = 0;
  float* d = nullptr;
  int64_t d_block = 0, d_col = 0, d_rank = 0;
};

// Starts to copy a tile of x whose first element is *from; what lies beyond rows and cols becomes
// 0.
template <class T>
__device__ void load_tile(T* tile, const T* from, int64_t ldx, int64_t rows, int64_t cols,
                          bool packed) {
  if (packed) {
    constexpr int N = kFullPack<T>, kPacks = kTile / N;
#pragma unroll 4
    for (int e = int(threadIdx.x); e < kTile * kPacks; e += kThreads) {
      const int i = e / kPacks, j = e % kPacks * N;
      const int64_t count = i >= rows || j >= cols ? 0 : cols - j < N ? cols - j : N;
      cp_async_16(tile + i * kPitch<T> + j, count > 0 ? from + i * ldx + j : from,
                  int(count) * int(sizeof(T)));
    }
  } else {
    for (int e = int(threadIdx.x); e < kTile * kTile; e += kThreads) {
      const int i = e / kTile, j = e % kTile;
      tile[i * kPitch<T> + j] = i < rows && j < cols ? from[i * ldx + j] : T(0.0f);
    }
  }
}

// Tiles in shared memory: one is worked on while the others arrive.
template <class T, int kRank>
constexpr int kStages = sizeof(T) == 4 ? 2
                        : kRank == 64  ? 3
                                       : 4;

template <class T, int kRank>
size_t contract_shared_bytes(int64_t row_tiles, bool across, bool down) {
  size_t bytes = size_t{kStages<T, kRank>} * kTile * kPitch<T> * sizeof(T);
  if (across)
    bytes += size_t(row_tiles) * kTile * kRank * sizeof(float) +
             Operand<kAdapterPieces<T>>::bytes(kSteps, kRank / 8);
  if (down) bytes += Operand<kPieces<T>>::bytes(row_tiles * kSteps, kRank / 8);
  return bytes;
}

// Ranks up to kRank, 16 or 64.
template <class T, int kRank, bool kAcross, bool kDown>
__global__ void __launch_bounds__(kThreads, kRank == 64 ? 2 : 4)
    contract_kernel(const Contraction<T> p) {
  constexpr int kRankTiles = kRank / 8, P = kPieces<T>, kAhead = kStages<T, kRank> - 1;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int64_t first = blockIdx.x * p.block_rows;
  const int64_t rows = p.rows - first < p.block_rows ? p.rows - first : p.block_rows;
  const int row_tiles = int(ceil_div(rows, kTile)), rank_tiles = (p.rank + 7) / 8;
  const int tiles = row_tiles * int(p.cols > 0 ? ceil_div(p.cols, kTile) : 1);
  const T* x = p.x + first * p.ldx;  // [rows, cols]

  auto* shared = dynamic_shared<unsigned char>();
  T* ring = reinterpret_cast<T*>(shared);  // [kAhead + 1][kTile, kPitch]
  shared += size_t{kAhead + 1} * kTile * kPitch<T> * sizeof(T);
  float4* sums = nullptr;  // S in progress: [row_tiles][kRankTiles][kThreads], each thread its own
  Operand<kAdapterPieces<T>> m{nullptr, kSteps, kRankTiles};  // [columns of a tile, rank]
  Operand<P> v{nullptr, row_tiles * kSteps, kRankTiles};      // [rows, rank]
  if constexpr (kAcross) {
    sums = reinterpret_cast<float4*>(shared);
    shared += size_t(row_tiles) * kTile * kRank * sizeof(float);
    m.data = reinterpret_cast<uint2*>(shared);
    shared += size_t{kAdapterPieces<T>} * kSteps * kRankTiles * 32 * sizeof(uint2);
  }
  if constexpr (kDown) {
    v.data = reinterpret_cast<uint2*>(shared);
    v.stage([&](int i, int r) {
      return i < rows && r < p.rank ? float(p.v[(first + i) * p.ldv + r]) : 0.0f;
    });
  }

  const auto load = [&](int tile) {
    if (tile < tiles) {
      const int64_t i = int64_t{tile % row_tiles} * kTile, j = int64_t{tile / row_tiles} * kTile;
      load_tile(ring + tile % (kAhead + 1) * kTile * kPitch<T>, x + i * p.ldx + j, p.ldx, rows - i,
                p.cols - j, p.packed);
    }
    cp_async_commit();
  };
  for (int tile = 0; tile < kAhead; ++tile) load(tile);

  float down[kRankTiles][4] = {};  // D of columns 16 warp.. of the column tile
  for (int tile = 0; tile < tiles; ++tile) {
    cp_async_wait<kAhead - 1>();
    __syncthreads();  // the tile is there, and everybody is done with the one before
    load(tile + kAhead);
    const int row_tile = tile % row_tiles;
    const int64_t column = int64_t{tile / row_tiles} * kTile;  // of x, the tile's first
    if constexpr (kAcross) {
      if (row_tile == 0) {
        m.stage([&](int c, int r) {
          return column + c < p.cols && r < p.rank ? p.m[(column + c) * p.m_col + r * p.m_rank]
                                                   : 0.0f;
        });
        __syncthreads();
      }
    }

    const T* at = ring + tile % (kAhead + 1) * kTile * kPitch<T>;  // [kTile, kPitch]
    float across[kRankTiles][4] = {};                              // S of rows 16 warp..
    if constexpr (kAcross) {
#pragma unroll
      for (int n = 0; n < kRankTiles; ++n)
        if (column > 0 && n < rank_tiles) {
          const float4 sum = sums[(row_tile * kRankTiles + n) * kThreads + int(threadIdx.x)];
          across[n][0] = sum.x;
          across[n][1] = sum.y;
          across[n][2] = sum.z;
          across[n][3] = sum.w;
        }
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t as_is[P][4], transposed[P][4];
      if constexpr (kAcross) load_as_is(as_is, at, 16 * warp, 16 * step);
      if constexpr (kDown) load_transposed(transposed, at, 16 * step, 16 * warp);
#pragma unroll
      for (int n = 0; n < kRankTiles; ++n) {
        if (n >= rank_tiles) break;
        if constexpr (kAcross) {
          uint32_t b[kAdapterPieces<T>][2];
          m.load(b, step, n);
          multiply(across[n], as_is, b);
        }
        if constexpr (kDown) {
          uint32_t b[P][2];
          v.load(b, row_tile * kSteps + step, n);
          multiply(down[n], transposed, b);
        }
      }
    }

    if constexpr (kAcross) {
      const bool last = column + kTile >= p.cols;
#pragma unroll
      for (int n = 0; n < kRankTiles; ++n) {
        if (n >= rank_tiles) break;
        if (!last) {
          sums[(row_tile * kRankTiles + n) * kThreads + int(threadIdx.x)] =
              make_float4(across[n][0], across[n][1], across[n][2], across[n][3]);
          continue;
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int64_t i = int64_t{row_tile} * kTile + 16 * warp + g + e / 2 * 8;
          const int r = 8 * n + 2 * t + e % 2;
          if (i < rows && r < p.rank)
            p.s[(first + i) * p.lds + r] =
                T(p.scale != nullptr ? p.scale[r] * across[n][e] : across[n][e]);
        }
      }
    }
    if constexpr (kDown) {
      if (row_tile == row_tiles - 1) {
#pragma unroll
        for (int n = 0; n < kRankTiles; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int64_t c = column + 16 * warp + g + e / 2 * 8;
            const int r = 8 * n + 2 * t + e % 2;
            if (c < p.cols && r < p.rank)
              p.d[blockIdx.x * p.d_block + c * p.d_col + r * p.d_rank] = down[n][e];
            down[n][e] = 0;
          }
      }
    }
  }
}

template <bool kAcross, bool kDown, class T, class Stream>
void contract(Contraction<T> p, const Stream& stream) {
  constexpr int64_t kGroup = 64;  // ranks of one launch
  const int64_t rank = p.rank;
  p.block_rows = lora_block_rows<T>(p.rows, rank, kAcross, kDown);
  p.packed = packable<kFullPack<T>>(p.x, p.ldx);
  const auto blocks = unsigned(ceil_div(p.rows, p.block_rows));
  const int64_t row_tiles = ceil_div(p.rows < p.block_rows ? p.rows : p.block_rows, kTile);
  const auto run = [&]<int kRank>(std::integral_constant<int, kRank>) {
    launch(contract_kernel<T, kRank, kAcross, kDown>,
           {.grid_x = blocks,
            .threads_x = kThreads,
            .shared_bytes = contract_shared_bytes<T, kRank>(row_tiles, kAcross, kDown)},
           stream, p);
  };
  for (int64_t r = 0; r < rank; r += kGroup) {
    p.rank = int(rank - r < kGroup ? rank - r : kGroup);
    if (rank <= 16)
      run(std::integral_constant<int, 16>());
    else
      run(std::integral_constant<int, 64>());
    if (kAcross) {
      p.m += kGroup * p.m_rank;
      p.s += kGroup;
      if (p.scale != nullptr) p.scale += kGroup;
    }
    if (kDown) {
      p.v += kGroup;
      p.d += kGroup * p.d_rank;
    }
  }
}

// --- fold -------------------------------------------------------------------------------------

// out [m, n] = (accumulate ? out : 0) + scale [n] * sum over blocks of partial [blocks, m, n]; scale
// null: 1.
__global__ void fold_kernel(const float* partial, int64_t blocks, const float* scale, float* out,
                            int64_t ldo, bool accumulate, int64_t m, int64_t n) {
  const int64_t e = folded_entry();
  float sum = fold_entry(partial, blocks, m * n, e, e < m * n);
  if (threadIdx.y > 0 || e >= m * n) return;
  float* to = out + e / n * ldo + e % n;
  if (scale != nullptr) sum *= scale[e % n];
  *to = accumulate ? *to + sum : sum;
}

template <class Stream>
void fold(const float* partial, int64_t blocks, const float* scale, float* out, int64_t ldo,
          bool accumulate, int64_t m, int64_t n, const Stream& stream) {
  launch(fold_kernel, fold_shape(m * n), stream, partial, blocks, scale, out, ldo, accumulate, m,
         n);
}

// --- expand -----------------------------------------------------------------------------------

constexpr int kExpandRows = 256;  // of a block: the adapter's tile is staged once for all of them

// Which element of a product's order each place holds: a lane's four k (pairs 2t, 2t+1 and 2t+8,
// 2t+9) are neighbours in memory, and so are its eight columns of four tiles. A sum may be taken in
// any order, and columns may lie in any, so 16 bytes an instruction cost nothing.
__device__ inline int neighbouring_rank(int k) {
  return k / 16 * 16 + k % 8 / 2 * 4 + k / 8 % 2 * 2 + k % 2;
}
__device__ inline int neighbouring_column(int n) {
  return n / 32 * 32 + n % 8 / 2 * 8 + n / 8 % 4 * 2 + n % 2;
}

// Count elements of a row in packs of M; 0 beyond.
template <int M, class T, int N>
__device__ void load_row(float (&to)[N], const T* from, int64_t count) {
#pragma unroll
  for (int e = 0; e < N; e += M) {
    const Pack<T, M> pack = load_part<M>(from + e, count - e);
#pragma unroll
    for (int i = 0; i < M; ++i) to[e + i] = float(pack[i]);
  }
}
template <int M, class T, int N>
__device__ void store_row(T* to, const float (&from)[N], int64_t count) {
#pragma unroll
  for (int e = 0; e < N; e += M) {
    Pack<T, M> pack;
#pragma unroll
    for (int i = 0; i < M; ++i) pack[i] = T(from[e + i]);
    store_part(to + e, pack, count - e);
  }
}

// y [rows, cols] += V M^T, M(c, r) = scale[r] * m[c * m_col + r * m_rank]; scale null: 1. A warp
// makes 16 rows and 64 columns at a time, straight from and to memory.
template <class T>
__global__ void __launch_bounds__(kThreads)
    expand_kernel(const T* v, int64_t ldv, const float* m, int64_t m_col, int64_t m_rank,
                  const float* scale, T* y, int64_t ldy, int64_t rows, int64_t cols, int rank) {
  constexpr int N = kFullPack<T>;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const auto across = unsigned(ceil_div(cols, kTile));
  const int64_t column = int64_t{blockIdx.x % across} * kTile;
  const int64_t begin = int64_t{blockIdx.x / across} * kExpandRows;
  const int64_t end = begin + kExpandRows < rows ? begin + kExpandRows : rows;
  const int steps = (rank + 15) / 16;
  const Operand<kAdapterPieces<T>> operand{dynamic_shared<uint2>(), steps, kTile / 8};
  operand.stage([&](int k, int n) {
    const int r = neighbouring_rank(k);
    const int64_t c = column + neighbouring_column(n);
    if (r >= rank || c >= cols) return 0.0f;
    return (scale != nullptr ? scale[r] : 1.0f) * m[c * m_col + r * m_rank];
  });
  __syncthreads();

  for (int64_t row = begin + 16 * warp; row < end; row += kTile) {
    float sum[8][4];  // [tile of 8 columns][two rows, two columns]: y and what is added to it
#pragma unroll
    for (int half = 0; half < 4; ++half) {  // row g or g+8, columns 0.. or 32..
      const int64_t i = row + g + half / 2 * 8, j = column + half % 2 * 32 + 8 * t;
      float values[8];
      load_row<N>(values, y + i * ldy + j, i < end ? cols - j : 0);
#pragma unroll
      for (int e = 0; e < 8; ++e) sum[half % 2 * 4 + e / 2][half / 2 * 2 + e % 2] = values[e];
    }
    for (int step = 0; step < steps; ++step) {
      const int r = 16 * step + 4 * t;
      float upper[4], lower[4];  // rows g and g+8
      const int64_t count = rank - r;
      load_row<4>(upper, v + (row + g) * ldv + r, row + g < end ? count : 0);
      load_row<4>(lower, v + (row + g + 8) * ldv + r, row + g + 8 < end ? count : 0);
      const float values[8] = {upper[0], upper[1], lower[0], lower[1],
                               upper[2], upper[3], lower[2], lower[3]};
      uint32_t a[kPieces<T>][4];
      split(values, a);
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        uint32_t b[kAdapterPieces<T>][2];
        operand.load(b, step, n);
        multiply(sum[n], a, b);
      }
    }
#pragma unroll
    for (int half = 0; half < 4; ++half) {
      const int64_t i = row + g + half / 2 * 8, j = column + half % 2 * 32 + 8 * t;
      float values[8];
#pragma unroll
      for (int e = 0; e < 8; ++e) values[e] = sum[half % 2 * 4 + e / 2][half / 2 * 2 + e % 2];
      store_row<N>(y + i * ldy + j, values, i < end ? cols - j : 0);
    }
  }
}

template <class T, class Stream>
void expand(const T* v, int64_t ldv, const float* m, int64_t m_col, int64_t m_rank,
            const float* scale, T* y, int64_t ldy, int64_t rows, int64_t cols, int64_t rank,
            const Stream& stream) {
  if (rank == 0) return;
  launch(expand_kernel<T>,
         {.grid_x = unsigned(ceil_div(cols, kTile) * ceil_div(rows, kExpandRows)),
          .threads_x = kThreads,
          .shared_bytes = Operand<kAdapterPieces<T>>::bytes(ceil_div(rank, 16), kTile / 8)},
         stream, v, ldv, m, m_col, m_rank, scale, y, ldy, rows, cols, int(rank));
}

// --- merge ------------------------------------------------------------------------------------

constexpr int kMergeRows = 8, kMergeColumns = 4;  // of a thread: A is loaded once for 8 rows

// A block is 32 rows and 128 columns.
template <class T>
__global__ void merge_kernel(LoraMerge<T> p) {
  constexpr int N = kMergeColumns;
  const int rank = int(p.rank);
  float* factors = rank > 0 ? dynamic_shared<float>() : nullptr;  // [32, rank] = scale * B
  const auto across = unsigned(ceil_div(p.in, 32 * N));
  const int64_t first = int64_t{blockIdx.x / across} * (kWarps * kMergeRows);
  const int64_t j = (int64_t{blockIdx.x % across} * 32 + threadIdx.x) * N;
  for (int e = int(threadIdx.y * 32 + threadIdx.x); e < kWarps * kMergeRows * rank; e += kThreads) {
    const int64_t i = first + e / rank;
    factors[e] = i < p.out ? p.scale[e % rank] * p.b[i * p.ldb + e % rank] : 0.0f;
  }
  __syncthreads();
  if (j >= p.in) return;
  const int64_t mine = first + int64_t{threadIdx.y} * kMergeRows;
  const float* f = factors + threadIdx.y * kMergeRows * unsigned(rank);  // [kMergeRows, rank]
  Pack<float, N> sum[kMergeRows];
#pragma unroll
  for (int i = 0; i < kMergeRows; ++i)
    if (mine + i < p.out) sum[i] = load_part<N>(p.w + (mine + i) * p.ldw + j, p.in - j);
  for (int r = 0; r < rank; ++r) {
    const Pack<float, N> row = load_part<N>(p.a + r * p.lda + j, p.in - j);  // [N]
#pragma unroll
    for (int i = 0; i < kMergeRows; ++i)
#pragma unroll
      for (int e = 0; e < N; ++e) sum[i][e] += f[i * rank + r] * row[e];
  }
#pragma unroll
  for (int i = 0; i < kMergeRows; ++i) {
    if (mine + i >= p.out) break;
    Pack<T, N> rounded;
#pragma unroll
    for (int e = 0; e < N; ++e) rounded[e] = T(sum[i][e]);
    store_part(p.merged + (mine + i) * p.ldm + j, rounded, p.in - j);
  }
}

// --- scale ------------------------------------------------------------------------------------

template <class T>
__global__ void scale_kernel(LoraScale<T> p) {
  const int64_t e = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (e >= p.out * p.rank) return;
  const int64_t i = e / p.rank, r = e % p.rank;
  p.v[i * p.ldv + r] = T(p.scale[r] * p.b[i * p.ldb + r]);
}

void check_rank(int64_t rank) {
  OF_CHECK(rank <= kMostRank, "lora: a stacked rank of " + std::to_string(rank) + " exceeds " +
                                  std::to_string(kMostRank));
}

}  // namespace

template <class T, class Stream>
void lora_down(const LoraDown<T>& p, const Stream& stream) {
  contract</*kAcross=*/true, /*kDown=*/false>(Contraction<T>{.x = p.x,
                                                             .ldx = p.ldx,
                                                             .rows = p.rows,
                                                             .cols = p.in,
                                                             .rank = int(p.rank),
                                                             .m = p.a,
                                                             .m_col = 1,
                                                             .m_rank = p.lda,
                                                             .s = p.u,
                                                             .lds = p.ldu},
                                              stream);
}

template <class T, class Stream>
void lora_up(const LoraUp<T>& p, const Stream& stream) {
  check_rank(p.rank);
  expand(p.u, p.ldu, p.b, p.ldb, 1, p.scale, p.y, p.ldy, p.rows, p.out, p.rank, stream);
}

template <class T, class Stream>
void lora_up_backward(const LoraUpBackward<T>& p, const Stream& stream) {
  auto* partial = scratch_as<float>(stream, lora_up_backward_scratch<T>(p.rows, p.out, p.rank));
  contract</*kAcross=*/true, /*kDown=*/true>(Contraction<T>{.x = p.dy,
                                                            .ldx = p.lddy,
                                                            .rows = p.rows,
                                                            .cols = p.out,
                                                            .rank = int(p.rank),
                                                            .m = p.b,
                                                            .scale = p.scale,
                                                            .m_col = p.ldb,
                                                            .m_rank = 1,
                                                            .s = p.du,
                                                            .lds = p.lddu,
                                                            .v = p.u,
                                                            .ldv = p.ldu,
                                                            .d = partial,
                                                            .d_block = p.out * p.rank,
                                                            .d_col = p.rank,
                                                            .d_rank = 1},
                                             stream);
  fold(partial, ceil_div(p.rows, lora_block_rows<T>(p.rows, p.rank, true, true)), p.scale, p.db,
       p.lddb, p.accumulate, p.out, p.rank, stream);
}

template <class T, class Stream>
void lora_down_backward(const LoraDownBackward<T>& p, const Stream& stream) {
  check_rank(p.rank);
  auto* partial = scratch_as<float>(stream, lora_down_backward_scratch<T>(p.rows, p.in, p.rank));
  contract</*kAcross=*/false, /*kDown=*/true>(Contraction<T>{.x = p.x,
                                                             .ldx = p.ldx,
                                                             .rows = p.rows,
                                                             .cols = p.in,
                                                             .rank = int(p.rank),
                                                             .v = p.du,
                                                             .ldv = p.lddu,
                                                             .d = partial,
                                                             .d_block = p.in * p.rank,
                                                             .d_col = 1,
                                                             .d_rank = p.in},
                                              stream);
  fold(partial, ceil_div(p.rows, lora_block_rows<T>(p.rows, p.rank, false, true)), nullptr, p.da,
       p.ldda, p.accumulate, p.rank, p.in, stream);
  if (p.dx != nullptr)
    expand(p.du, p.lddu, p.a, 1, p.lda, nullptr, p.dx, p.lddx, p.rows, p.in, p.rank, stream);
}

template <class T, class Stream>
void lora_merge(const LoraMerge<T>& p, const Stream& stream) {
  OF_CHECK(p.ldw >= p.in && p.lda >= p.in && p.ldb >= p.rank && p.ldm >= p.in,
           "lora_merge: a pitch is smaller than its row");
  check_rank(p.rank);
  launch(merge_kernel<T>,
         {.grid_x =
              unsigned(ceil_div(p.in, 32 * kMergeColumns) * ceil_div(p.out, kWarps * kMergeRows)),
          .threads_x = 32,
          .threads_y = kWarps,
          .shared_bytes = size_t(kWarps * kMergeRows * p.rank) * sizeof(float)},
         stream, p);
}

template <class T, class Stream>
void lora_scale(const LoraScale<T>& p, const Stream& stream) {
  launch(scale_kernel<T>,
         {.grid_x = unsigned(ceil_div(p.out * p.rank, kThreads)), .threads_x = kThreads}, stream,
         p);
}

#define OF_INSTANTIATE(T)                                                         \
  template void lora_down(const LoraDown<T>&, const OF_STREAM&);                  \
  template void lora_up(const LoraUp<T>&, const OF_STREAM&);                      \
  template void lora_up_backward(const LoraUpBackward<T>&, const OF_STREAM&);     \
  template void lora_down_backward(const LoraDownBackward<T>&, const OF_STREAM&); \
  template void lora_merge(const LoraMerge<T>&, const OF_STREAM&);                \
  template void lora_scale(const LoraScale<T>&, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
