#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_pairs.h"
#include "kernels/core/check.h"
#include "kernels/core/math.h"
#include "kernels/core/parallel.h"
#include "kernels/core/tile.h"

// Everything is computed transposed, with one query a lane: S^T = K Q^T has keys as rows, so the
// softmax runs down the rows and needs no sum across lanes, P^T [keys, queries] is what the
// products after it read in order, and K and V are read as they lie. Only Q, dO, O and dQ are
// transposed, which is work in tokens, not in tokens^2.
namespace orthofed::cpu {
namespace {

// Tiles on the stack, in elements of Accum<T>: 1 MB at most in double. For 197 tokens of 64 in
// float they stay in a second-level cache of 512 KB, and K and V are copied once.
constexpr int64_t kv_elements = 18 * 1024;          // of K, of V, of dK and of dV at a time
constexpr int64_t q_elements = 264 * 32;            // of Q, and of each of its kind
constexpr int64_t max_queries = 64, max_keys = 96;  // of S^T at a time

// How the tokens are cut. The parts are nearly equal, so that no small one is left over.
struct Blocks {
  int64_t pitch;    // of tiles with head_dim columns: whole tiles both as rows and as columns
  int64_t kv;       // keys held at a time
  int64_t keys;     // of them, rows of S^T
  int64_t queries;  // columns of S^T

  Blocks(int64_t tokens, int64_t head_dim) {
    constexpr int64_t widest = tile_cols<16>;
    pitch = std::max(round_up(head_dim, tile_rows), round_up(head_dim, widest));
    kv = part(tokens, kv_elements / pitch, tile_rows);
    keys = part(std::min(kv, tokens), max_keys, tile_rows);
    queries = std::min(max_queries, q_elements / pitch / widest * widest);
  }

 private:
  static int64_t part(int64_t n, int64_t limit, int64_t multiple) {
    limit = limit / multiple * multiple;
    const int64_t parts = std::max<int64_t>(1, (n + limit - 1) / limit);
    return std::max(multiple, round_up((n + parts - 1) / parts, multiple));
  }
};

// to [padded_rows, padded_cols] = scale * from [rows, cols], widened, zeros around.
template <class T, class A>
void load(const T* from, int64_t ld, int64_t rows, int64_t cols, A scale, A* to,
          int64_t padded_rows, int64_t padded_cols) {
  for (int64_t i = 0; i < padded_rows; ++i, to += padded_cols) {
    const int64_t filled = i < rows ? cols : 0;
    for (int64_t j = 0; j < filled; ++j) to[j] = scale * A(from[i * ld + j]);
    for (int64_t j = filled; j < padded_cols; ++j) to[j] = 0;
  }
}

// to [cols, padded_rows] = scale * from [rows, cols]^T, widened, zeros to the right.
template <class T, class A>
void load_transposed(const T* from, int64_t ld, int64_t rows, int64_t cols, A scale, A* to,
                     int64_t padded_rows) {
  // Down the tile, which the nearest cache holds, and along `from`, whose rows may be pages apart.
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) to[j * padded_rows + i] = scale * A(from[i * ld + j]);
  for (int64_t i = rows; i < padded_rows; ++i)
    for (int64_t j = 0; j < cols; ++j) to[j * padded_rows + i] = 0;
}

}  // namespace

template <class T>
void attention_forward(const AttentionForward<T>& a) {
  using A = Accum<T>;
  const AttentionShape& s = a.shape;
  check(s);
  if constexpr (std::is_same_v<T, bf16>)
    if (native_bf16()) return pairs::attention_forward(a);
  const int64_t d = s.head_dim, dim = s.heads * d;
  const Blocks block(s.tokens, d);

  parallel_for_vector<A>(s.batch * s.heads, 1, [&](auto lanes, int64_t task, int64_t) {
    using V = Vector<A, lanes>;
    alignas(64) A k_tile[kv_elements], v_tile[kv_elements];  // [kv, pitch]
    alignas(64) A q_t[q_elements], o_t[q_elements];          // [pitch, n]
    alignas(64) A p_t[max_keys * max_queries];               // [keys, n]
    alignas(64) A top[max_queries], sum[max_queries];        // of each query's row of S so far

    const int64_t image = task / s.heads, head = task % s.heads;
    const T* q = a.qkv + image * s.tokens * s.ld_qkv + head * d;  // [tokens, d]
    const T* k = q + dim;
    const T* v = k + dim;
    T* o = a.out + image * s.tokens * s.ld_out + head * d;
    int64_t held = -1;  // the first key in k_tile

    for (int64_t q0 = 0; q0 < s.tokens; q0 += block.queries) {
      const int64_t queries = std::min(block.queries, s.tokens - q0);
      const int64_t n = round_up(queries, tile_cols<lanes>);
      const int64_t m = round_up(d, tile_rows);
      load_transposed(q + q0 * s.ld_qkv, s.ld_qkv, queries, d, A(a.scale), q_t, n);
      std::fill(o_t, o_t + m * n, A(0));
      std::fill(top, top + n, -std::numeric_limits<A>::infinity());
      std::fill(sum, sum + n, A(0));

      for (int64_t kv0 = 0; kv0 < s.tokens; kv0 += block.kv) {
        const int64_t kv = std::min(block.kv, s.tokens - kv0);
        if (held != kv0) {
          held = kv0;
          const int64_t rows = round_up(kv, tile_rows);
          load(k + kv0 * s.ld_qkv, s.ld_qkv, kv, d, A(1), k_tile, rows, block.pitch);
          load(v + kv0 * s.ld_qkv, s.ld_qkv, kv, d, A(1), v_tile, rows, block.pitch);
        }
        for (int64_t k0 = 0; k0 < kv; k0 += block.keys) {
          const int64_t keys = std::min(block.keys, kv - k0);
          multiply_block<lanes>(k_tile + k0 * block.pitch, block.pitch, 1, q_t, n, p_t, n,
                                round_up(keys, tile_rows), n, d, /*add=*/false);
          // Online softmax: a new maximum rescales what was summed under the old one.
          for (int64_t j = 0; j < n; j += lanes) {
            V largest = as_vector<V>(top + j);
            for (int64_t i = 0; i < keys; ++i) {
              const V x = as_vector<V>(p_t + i * n + j);
              largest = x > largest ? x : largest;
            }
            A factor[lanes];
            for (int l = 0; l < lanes; ++l) factor[l] = exp_(top[j + l] - largest[l]);
            as_vector<V>(top + j) = largest;
            as_vector<V>(sum + j) *= as_vector<V>(factor);
            for (int64_t i = 0; i < m; ++i) as_vector<V>(o_t + i * n + j) *= as_vector<V>(factor);
          }
          for (int64_t i = 0; i < keys; ++i) {
            A* p = p_t + i * n;
            for (int64_t j = 0; j < n; ++j) sum[j] += p[j] = exp_(p[j] - top[j]);
          }
          multiply_block<lanes>(v_tile + k0 * block.pitch, 1, block.pitch, p_t, n, o_t, n, m, n,
                                keys, /*add=*/true);
        }
      }

      A share[max_queries];  // of a query's row of P that one unit of exp(S - top) is
      for (int64_t j = 0; j < n; ++j) share[j] = 1 / sum[j];
      for (int64_t i = 0; i < queries; ++i) {
        T* row = o + (q0 + i) * s.ld_out;
        for (int64_t j = 0; j < d; ++j) row[j] = T(o_t[j * n + i] * share[i]);
      }
      if (a.lse != nullptr) {
        A* to = a.lse + task * s.tokens + q0;
        for (int64_t i = 0; i < queries; ++i) to[i] = top[i] + std::log(sum[i]);
      }
    }
  });
}

template <class T>
void attention_backward(const AttentionBackward<T>& a) {
  using A = Accum<T>;
  const AttentionShape& s = a.shape;
  check(s);
  if constexpr (std::is_same_v<T, bf16>)
    if (native_bf16()) return pairs::attention_backward(a);
  const int64_t d = s.head_dim, dim = s.heads * d;
  const Blocks block(s.tokens, d);

  parallel_for_vector<A>(s.batch * s.heads, 1, [&](auto lanes, int64_t task, int64_t) {
    alignas(64) A k_tile[kv_elements], v_tile[kv_elements];    // [kv, pitch]
    alignas(64) A dk_tile[kv_elements], dv_tile[kv_elements];  // [kv, pitch]
    alignas(64) A q_tile[q_elements], do_tile[q_elements];     // [queries, pitch]
    alignas(64) A q_t[q_elements], do_t[q_elements];           // [pitch, n]
    alignas(64) A dq_t[q_elements];                            // [pitch, n]
    alignas(64) A p_t[max_keys * max_queries];                 // [keys, n]
    alignas(64) A ds_t[max_keys * max_queries];                // [keys, n]
    alignas(64) A row_lse[max_queries], row_dot[max_queries];  // lse_i and D_i

    const int64_t image = task / s.heads, head = task % s.heads;
    const int64_t token0 = image * s.tokens;
    const T* q = a.qkv + token0 * s.ld_qkv + head * d;  // [tokens, d]
    const T* k = q + dim;
    const T* v = k + dim;
    const T* o = a.out + token0 * s.ld_out + head * d;
    const T* grad = a.dout + token0 * s.ld_out + head * d;
    T* dq = a.dqkv + token0 * s.ld_qkv + head * d;

    for (int64_t kv0 = 0; kv0 < s.tokens; kv0 += block.kv) {
      const int64_t kv = std::min(block.kv, s.tokens - kv0);
      const int64_t kv_rows = round_up(kv, tile_rows);
      load(k + kv0 * s.ld_qkv, s.ld_qkv, kv, d, A(1), k_tile, kv_rows, block.pitch);
      load(v + kv0 * s.ld_qkv, s.ld_qkv, kv, d, A(1), v_tile, kv_rows, block.pitch);
      std::fill(dk_tile, dk_tile + kv_rows * block.pitch, A(0));
      std::fill(dv_tile, dv_tile + kv_rows * block.pitch, A(0));

      for (int64_t q0 = 0; q0 < s.tokens; q0 += block.queries) {
        const int64_t queries = std::min(block.queries, s.tokens - q0);
        const int64_t n = round_up(queries, tile_cols<lanes>);
        const int64_t m = round_up(d, tile_rows);
        const int64_t columns = round_up(d, tile_cols<lanes>);
        load(q + q0 * s.ld_qkv, s.ld_qkv, queries, d, A(a.scale), q_tile, queries, block.pitch);
        load(grad + q0 * s.ld_out, s.ld_out, queries, d, A(1), do_tile, queries, block.pitch);
        load_transposed(q_tile, block.pitch, queries, d, A(1), q_t, n);
        load_transposed(do_tile, block.pitch, queries, d, A(1), do_t, n);
        std::fill(dq_t, dq_t + m * n, A(0));
        std::fill(row_lse, row_lse + n, A(0));
        std::fill(row_dot, row_dot + n, A(0));
        for (int64_t i = 0; i < queries; ++i) {
          row_lse[i] = a.lse[task * s.tokens + q0 + i];
          for (int64_t j = 0; j < d; ++j) {
            row_dot[i] += do_tile[i * block.pitch + j] * A(o[(q0 + i) * s.ld_out + j]);
          }
        }

        for (int64_t k0 = 0; k0 < kv; k0 += block.keys) {
          const int64_t keys = std::min(block.keys, kv - k0);
          const int64_t rows = round_up(keys, tile_rows);
          const int64_t at = k0 * block.pitch;
          multiply_block<lanes>(k_tile + at, block.pitch, 1, q_t, n, p_t, n, rows, n, d, false);
          multiply_block<lanes>(v_tile + at, block.pitch, 1, do_t, n, ds_t, n, rows, n, d, false);
          for (int64_t i = 0; i < keys; ++i) {
            A* p = p_t + i * n;
            A* ds = ds_t + i * n;
            for (int64_t j = 0; j < n; ++j) {
              p[j] = exp_(p[j] - row_lse[j]);
              ds[j] = p[j] * (ds[j] - row_dot[j]);
            }
          }
          multiply_block<lanes>(p_t, n, 1, do_tile, block.pitch, dv_tile + at, block.pitch, rows,
                                columns, queries, true);
          multiply_block<lanes>(ds_t, n, 1, q_tile, block.pitch, dk_tile + at, block.pitch, rows,
                                columns, queries, true);
          multiply_block<lanes>(k_tile + at, 1, block.pitch, ds_t, n, dq_t, n, m, n, keys, true);
        }

        for (int64_t i = 0; i < queries; ++i) {
          T* row = dq + (q0 + i) * s.ld_qkv;
          for (int64_t j = 0; j < d; ++j) {
            const A before = kv0 == 0 ? A(0) : A(row[j]);
            row[j] = T(before + A(a.scale) * dq_t[j * n + i]);
          }
        }
      }

      for (int64_t i = 0; i < kv; ++i) {
        T* dk = dq + (kv0 + i) * s.ld_qkv + dim;
        T* dv = dk + dim;
        for (int64_t j = 0; j < d; ++j) dk[j] = T(dk_tile[i * block.pitch + j]);
        for (int64_t j = 0; j < d; ++j) dv[j] = T(dv_tile[i * block.pitch + j]);
      }
    }
  });
}

#define OF_INSTANTIATE(T)                                      \
  template void attention_forward(const AttentionForward<T>&); \
  template void attention_backward(const AttentionBackward<T>&);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
