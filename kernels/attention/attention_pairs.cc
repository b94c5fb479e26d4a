#include "kernels/attention/attention_pairs.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/tile.h"
#include "kernels/core/tile_bf16.h"

// As in attention_cpu.cc S^T = K Q^T has keys as rows, so that one query is a lane of the softmax.
// What a product reads as its left operand lies along the inner dimension (K, V along d; P^T, dS^T
// along the queries) and is used as it is; the right one is interleaved, two rows of the inner
// dimension at a time, and so is P^T where O = P V reads it down the keys.
namespace orthofed::cpu::pairs {

#if defined(__x86_64__)
namespace {

// Tiles on the stack, 0.55 MB at most. For 197 tokens of 64, what a block of queries reads stays in
// a second-level cache of 512 KB, and K and V are copied once.
constexpr int64_t kv_elements = 18 * 1024;           // of K, of V, of dK and of dV at a time
constexpr int64_t q_elements = 96 * 64;              // of Q, and of each of its kind
constexpr int64_t max_keys = 288, max_queries = 96;  // of S^T at a time
constexpr int64_t strip = 32;                        // of its keys, in the nearest cache

constexpr double log2_e = 1.4426950408889634;

// How the tokens are cut. The parts are nearly equal, so that no small one is left over.
struct Blocks {
  int64_t pitch;    // head_dim, padded
  int64_t kv;       // keys held at a time
  int64_t queries;  // columns of S^T

  Blocks(int64_t tokens, int64_t head_dim)
      : pitch(round_up(head_dim, lanes)),
        kv(part(tokens, std::min(max_keys, kv_elements / pitch))),
        queries(part(tokens, std::min(max_queries, q_elements / pitch))) {}

 private:
  static int64_t part(int64_t n, int64_t limit) {
    limit = limit / lanes * lanes;
    const int64_t parts = std::max<int64_t>(1, (n + limit - 1) / limit);
    return std::max<int64_t>(lanes, round_up((n + parts - 1) / parts, lanes));
  }
};

// to [pitch / 2, n] = from [n, pitch / 2]^T, whole pairs.
inline void transpose(const uint32_t* from, int64_t n, int64_t pitch, uint32_t* to) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < pitch / 2; ++j) to[j * n + i] = from[i * (pitch / 2) + j];
}

// Two rows as round_two() makes them.
OF_BF16 inline void store_two(__m512i two_rows, uint32_t* to, int64_t pitch) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(two_rows));
  _mm256_store_si256(reinterpret_cast<__m256i*>(to + pitch),
                     _mm512_extracti64x4_epi64(two_rows, 1));
}

OF_BF16 inline float dot(const bf16* a, const bf16* b, int64_t n) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < n; j += lanes)
    sum = _mm512_fmadd_ps(widen(load_16(a + j, n - j)), widen(load_16(b + j, n - j)), sum);
  return _mm512_reduce_add_ps(sum);
}

// 2^t = 2^n 2^f with |f| <= 1/2, 2^f by a minimax polynomial (relative error 9.2e-8). scalef makes
// 0 of a large negative t, -infinity included; NaN stays NaN.
OF_BF16 inline __m512 exp2_(__m512 t) {
  const __m512 f = _mm512_reduce_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 n = _mm512_sub_ps(t, f);
  __m512 p = _mm512_set1_ps(1.326472229e-3f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.671512990e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.550733760e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.402224208e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931469776e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

OF_BF16 void forward_head(const AttentionForward<bf16>& a, int64_t task) {
  const AttentionShape& s = a.shape;
  alignas(64) uint32_t k_rows[kv_elements / 2], v_pairs[kv_elements / 2];  // [kv, pitch]
  alignas(64) uint32_t q_rows[q_elements / 2], q_t[q_elements / 2];        // [n, pitch], [pitch, n]
  alignas(64) float s_t[max_keys * max_queries];                           // [kv, n]
  alignas(64) uint32_t p_pairs[max_keys * max_queries / 2];                // [kv, n]
  alignas(64) float o[q_elements];                                         // [n, pitch]
  // Of each query's row of S so far: its maximum, the sum of 2^(S - top), and by how much the last
  // maximum was smaller.
  alignas(64) float top[max_queries], sum[max_queries], factor[max_queries];

  const Blocks block(s.tokens, s.head_dim);
  const int64_t d = s.head_dim, dim = s.heads * d, pitch = block.pitch;
  const int64_t image = task / s.heads, head = task % s.heads;
  const bf16* q = a.qkv + image * s.tokens * s.ld_qkv + head * d;  // [tokens, d]
  const bf16* k = q + dim;
  const bf16* v = k + dim;
  bf16* to = a.out + image * s.tokens * s.ld_out + head * d;
  const __m512 base2 = _mm512_set1_ps(float(a.scale * log2_e));  // scores become exponents of 2
  const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  int64_t held = -1;  // the first key in k_rows

  for (int64_t q0 = 0; q0 < s.tokens; q0 += block.queries) {
    const int64_t queries = std::min(block.queries, s.tokens - q0), n = round_up(queries, lanes);
    load_rows(q + q0 * s.ld_qkv, s.ld_qkv, queries, d, q_rows, n, pitch);
    transpose(q_rows, n, pitch, q_t);
    std::fill(top, top + n, -std::numeric_limits<float>::infinity());
    std::fill(sum, sum + n, 0.0f);

    for (int64_t kv0 = 0; kv0 < s.tokens; kv0 += block.kv) {
      const int64_t kv = std::min(block.kv, s.tokens - kv0), rows = round_up(kv, tile_rows);
      if (held != kv0) {
        held = kv0;
        load_rows(k + kv0 * s.ld_qkv, s.ld_qkv, kv, d, k_rows, rows, pitch);
        load_pairs(v + kv0 * s.ld_qkv, s.ld_qkv, kv, d, v_pairs, rows, pitch);
      }
      multiply_block(k_rows, pitch / 2, 1, q_t, n, s_t, n, rows, n, pitch / 2, /*add=*/false);
      // Online softmax: a new maximum rescales what was summed under the old one.
      for (int64_t j = 0; j < n; j += lanes) {
        const __m512 before = _mm512_load_ps(top + j);
        __m512 largest = before;
        for (int64_t i = 0; i < kv; ++i)
          largest = _mm512_max_ps(_mm512_mul_ps(base2, _mm512_load_ps(s_t + i * n + j)), largest);
        const __m512 shrink = exp2_(_mm512_sub_ps(before, largest));
        __m512 total = _mm512_mul_ps(_mm512_load_ps(sum + j), shrink);
        for (int64_t i = 0; i < rows; i += 2) {
          const float* at = s_t + i * n + j;
          __m512 x0 = _mm512_fmsub_ps(base2, _mm512_load_ps(at), largest);
          __m512 x1 = _mm512_fmsub_ps(base2, _mm512_load_ps(at + n), largest);
          if (i >= kv) x0 = nothing;
          if (i + 1 >= kv) x1 = nothing;
          const __m512 p0 = exp2_(x0), p1 = exp2_(x1);
          total = _mm512_add_ps(total, _mm512_add_ps(p0, p1));
          _mm512_store_si512(p_pairs + i / 2 * n + j, interleave(round_two(p0, p1)));
        }
        _mm512_store_ps(top + j, largest);
        _mm512_store_ps(sum + j, total);
        _mm512_store_ps(factor + j, shrink);
      }
      if (kv0 > 0)
        for (int64_t i = 0; i < queries; ++i)
          for (int64_t j = 0; j < pitch; ++j) o[i * pitch + j] *= factor[i];
      multiply_block(p_pairs, 1, n, v_pairs, pitch, o, pitch, n, pitch, rows / 2, /*add=*/kv0 > 0);
    }

    for (int64_t i = 0; i < queries; ++i) {
      store_row(o + i * pitch, 1 / sum[i], to + (q0 + i) * s.ld_out, d);
      if (a.lse != nullptr)
        a.lse[task * s.tokens + q0 + i] =
            float((double(top[i]) + std::log2(double(sum[i]))) / log2_e);
    }
  }
}

OF_BF16 void backward_head(const AttentionBackward<bf16>& a, int64_t task) {
  const AttentionShape& s = a.shape;
  // [kv, pitch]; pairs along the columns, or of keys
  alignas(64) uint32_t k_rows[kv_elements / 2], v_rows[kv_elements / 2], k_pairs[kv_elements / 2];
  alignas(64) float dk_tile[kv_elements], dv_tile[kv_elements];
  // [n, pitch], [pitch, n], and pairs of queries [n, pitch]
  alignas(64) uint32_t q_rows[q_elements / 2], q_t[q_elements / 2], q_pairs[q_elements / 2];
  alignas(64) uint32_t do_rows[q_elements / 2], do_t[q_elements / 2], do_pairs[q_elements / 2];
  alignas(64) float dq_tile[q_elements];                                          // [n, pitch]
  alignas(64) float s_strip[strip * max_queries], dp_strip[strip * max_queries];  // [strip, n]
  // [kv, n], pairs along the queries, or of keys
  alignas(64) uint32_t p_rows[max_keys * max_queries / 2];
  alignas(64) uint32_t ds_rows[max_keys * max_queries / 2], ds_pairs[max_keys * max_queries / 2];
  alignas(64) float row_lse[max_queries], row_dot[max_queries];  // lse_i to base 2, and D_i

  const Blocks block(s.tokens, s.head_dim);
  const int64_t d = s.head_dim, dim = s.heads * d, pitch = block.pitch;
  const int64_t image = task / s.heads, head = task % s.heads, token0 = image * s.tokens;
  const bf16* q = a.qkv + token0 * s.ld_qkv + head * d;  // [tokens, d]
  const bf16* k = q + dim;
  const bf16* v = k + dim;
  const bf16* o = a.out + token0 * s.ld_out + head * d;
  const bf16* grad = a.dout + token0 * s.ld_out + head * d;
  bf16* dq = a.dqkv + token0 * s.ld_qkv + head * d;
  const float scale = float(a.scale);
  const __m512 base2 = _mm512_set1_ps(float(a.scale * log2_e));
  const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());

  for (int64_t kv0 = 0; kv0 < s.tokens; kv0 += block.kv) {
    const int64_t kv = std::min(block.kv, s.tokens - kv0), kv_rows = round_up(kv, tile_rows);
    load_rows(k + kv0 * s.ld_qkv, s.ld_qkv, kv, d, k_rows, kv_rows, pitch);
    load_rows(v + kv0 * s.ld_qkv, s.ld_qkv, kv, d, v_rows, kv_rows, pitch);
    load_pairs(k + kv0 * s.ld_qkv, s.ld_qkv, kv, d, k_pairs, kv_rows, pitch);

    for (int64_t q0 = 0; q0 < s.tokens; q0 += block.queries) {
      const int64_t queries = std::min(block.queries, s.tokens - q0), n = round_up(queries, lanes);
      const bf16* q_at = q + q0 * s.ld_qkv;
      const bf16* do_at = grad + q0 * s.ld_out;
      load_rows(q_at, s.ld_qkv, queries, d, q_rows, n, pitch);
      load_rows(do_at, s.ld_out, queries, d, do_rows, n, pitch);
      load_pairs(q_at, s.ld_qkv, queries, d, q_pairs, n, pitch);
      load_pairs(do_at, s.ld_out, queries, d, do_pairs, n, pitch);
      transpose(q_rows, n, pitch, q_t);
      transpose(do_rows, n, pitch, do_t);
      std::fill(row_lse, row_lse + n, 0.0f);
      std::fill(row_dot, row_dot + n, 0.0f);
      for (int64_t i = 0; i < queries; ++i) {
        row_lse[i] = float(log2_e * double(a.lse[task * s.tokens + q0 + i]));
        row_dot[i] = dot(do_at + i * s.ld_out, o + (q0 + i) * s.ld_out, d);
      }

      for (int64_t k0 = 0; k0 < kv; k0 += strip) {
        const int64_t rows = std::min(strip, kv_rows - k0), at = k0 * pitch / 2;
        multiply_block(k_rows + at, pitch / 2, 1, q_t, n, s_strip, n, rows, n, pitch / 2, false);
        multiply_block(v_rows + at, pitch / 2, 1, do_t, n, dp_strip, n, rows, n, pitch / 2, false);
        for (int64_t i = 0; i < rows; i += 2) {
          const int64_t key = k0 + i;
          for (int64_t j = 0; j < n; j += lanes) {
            const __m512 l = _mm512_load_ps(row_lse + j), dot = _mm512_load_ps(row_dot + j);
            const float* s_at = s_strip + i * n + j;
            const float* dp_at = dp_strip + i * n + j;
            __m512 x0 = _mm512_fmsub_ps(base2, _mm512_load_ps(s_at), l);
            __m512 x1 = _mm512_fmsub_ps(base2, _mm512_load_ps(s_at + n), l);
            if (key >= kv) x0 = nothing;
            if (key + 1 >= kv) x1 = nothing;
            const __m512 p0 = exp2_(x0), p1 = exp2_(x1);
            const __m512 ds0 = _mm512_mul_ps(p0, _mm512_sub_ps(_mm512_load_ps(dp_at), dot));
            const __m512 ds1 = _mm512_mul_ps(p1, _mm512_sub_ps(_mm512_load_ps(dp_at + n), dot));
            const __m512i p = round_two(p0, p1), ds = round_two(ds0, ds1);
            store_two(p, p_rows + (key * n + j) / 2, n / 2);
            store_two(ds, ds_rows + (key * n + j) / 2, n / 2);
            _mm512_store_si512(ds_pairs + key / 2 * n + j, interleave(ds));
          }
        }
      }
      const bool first = q0 == 0;
      multiply_block(p_rows, n / 2, 1, do_pairs, pitch, dv_tile, pitch, kv_rows, pitch, n / 2,
                     !first);
      multiply_block(ds_rows, n / 2, 1, q_pairs, pitch, dk_tile, pitch, kv_rows, pitch, n / 2,
                     !first);
      multiply_block(ds_pairs, 1, n, k_pairs, pitch, dq_tile, pitch, n, pitch, kv_rows / 2, false);

      for (int64_t i = 0; i < queries; ++i) {
        float* row = dq_tile + i * pitch;
        bf16* to = dq + (q0 + i) * s.ld_qkv;
        for (int64_t j = 0; j < d; ++j) row[j] *= scale;
        if (kv0 > 0)
          for (int64_t j = 0; j < d; ++j) row[j] += float(to[j]);
        store_row(row, 1, to, d);
      }
    }

    for (int64_t i = 0; i < kv; ++i) {
      bf16* dk = dq + (kv0 + i) * s.ld_qkv + dim;
      store_row(dk_tile + i * pitch, scale, dk, d);
      store_row(dv_tile + i * pitch, 1, dk + dim, d);
    }
  }
}

}  // namespace

void attention_forward(const AttentionForward<bf16>& a) {
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < a.shape.batch * a.shape.heads; ++task) forward_head(a, task);
}

void attention_backward(const AttentionBackward<bf16>& a) {
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < a.shape.batch * a.shape.heads; ++task) backward_head(a, task);
}

#else  // native_bf16() is false

void attention_forward(const AttentionForward<bf16>&) {
  OF_CHECK(false, "attention by pairs of bf16 on a processor without them");
}
void attention_backward(const AttentionBackward<bf16>&) {
  OF_CHECK(false, "attention by pairs of bf16 on a processor without them");
}

#endif

}  // namespace orthofed::cpu::pairs
