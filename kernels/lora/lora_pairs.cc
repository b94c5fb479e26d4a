#include "kernels/lora/lora_pairs.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/tile.h"
#include "kernels/core/tile_bf16.h"

// Rows go by in groups of 64, whose activations stay in a second-level cache for all that is done
// with them. Three products, on a group:
//
//   narrow:  u [64, R] = x [64, n] (hi + lo)      columns hi | lo, added up
//   wide:    y [64, n] += [u | u] (hi over lo)
//   outer:   sum [R, n] += u^T x                  x interleaved, two rows at a time
//
// Each task has a sum of its own, and how rows are cut into tasks depends on nothing but their
// number, so neither do the bits of the result.
namespace orthofed::cpu::pairs {

#if defined(__x86_64__)
namespace {

constexpr int64_t group = 64;      // rows
constexpr int64_t block = 96;      // columns of `outer` at a time
constexpr int64_t stretch = 1024;  // of the inner dimension of `narrow` at a time

int64_t padded(int64_t n) {
  return round_up(n, lanes);
}

// Memory of the calling thread, for one call.
template <class T>
T* scratch(int64_t n) {
  thread_local std::vector<T> memory;
  if (memory.size() < size_t(n)) memory.resize(size_t(n));
  return memory.data();
}

// How rows are cut: into whole groups, 32 tasks at most.
struct Tasks {
  int64_t rows, size, count;
  explicit Tasks(int64_t rows_)
      : rows(rows_),
        size(std::max(group, round_up((rows_ + 31) / 32, group))),
        count((rows_ + size - 1) / size) {}
  int64_t begin(int64_t task) const { return task * size; }
  int64_t end(int64_t task) const { return std::min(rows, begin(task) + size); }
};

// Two registers of an adapter's numbers in two bf16 each, in the order of round_two().
struct Halves {
  __m512i hi, lo;
};
OF_BF16 inline Halves split(__m512 first, __m512 second) {
  const __m512i hi = round_two(first, second);
  const __m512 hi_first = widen(_mm512_castsi512_si256(hi));
  const __m512 hi_second = widen(_mm512_extracti64x4_epi64(hi, 1));
  return {hi, round_two(_mm512_sub_ps(first, hi_first), _mm512_sub_ps(second, hi_second))};
}

// factor * from of the first n of 16 numbers, zeros behind them; factor null: 1.
OF_BF16 inline __m512 load_scaled(const float* from, const float* factor, int64_t n) {
  const __m512 x = _mm512_maskz_loadu_ps(first(n), from);
  return factor == nullptr ? x : _mm512_mul_ps(x, _mm512_maskz_loadu_ps(first(n), factor));
}

// An adapter's matrix [rows, cols] (times factor [cols], or null), as the right operand.
struct Source {
  const float* at;
  int64_t ld, rows, cols;
  const float* factor;
};

// hi and lo [rows / 2, pitch]: pairs down the rows of m, columns padded with zeros.
OF_BF16 void halves_down_rows(const Source& m, uint32_t* hi, uint32_t* lo, int64_t pitch) {
#pragma omp parallel for
  for (int64_t i = 0; i < m.rows; i += 2) {
    const float* row = m.at + i * m.ld;
    for (int64_t j = 0; j < m.cols; j += lanes) {
      const float* factor = m.factor == nullptr ? nullptr : m.factor + j;
      const __m512 upper = load_scaled(row + j, factor, m.cols - j);
      const __m512 lower =
          i + 1 < m.rows ? load_scaled(row + m.ld + j, factor, m.cols - j) : _mm512_setzero_ps();
      const Halves h = split(upper, lower);
      _mm512_storeu_si512(hi + i / 2 * pitch + j, interleave(h.hi));
      _mm512_storeu_si512(lo + i / 2 * pitch + j, interleave(h.lo));
    }
  }
}

// hi and lo [cols / 2, pitch]: pairs along the rows of m, whose rows become columns, padded with
// zeros.
OF_BF16 void halves_along_rows(const Source& m, uint32_t* hi, uint32_t* lo, int64_t pitch) {
#pragma omp parallel for collapse(2)
  for (int64_t i0 = 0; i0 < m.rows; i0 += lanes) {
    for (int64_t j = 0; j < m.cols; j += 2 * lanes) {
      const int64_t pairs = std::min<int64_t>(lanes, (m.cols - j + 1) / 2);
      for (int64_t i = i0; i < i0 + lanes; ++i) {
        alignas(64) uint32_t pair[2][lanes] = {};
        if (i < m.rows) {
          const float* row = m.at + i * m.ld + j;
          const float* factor = m.factor == nullptr ? nullptr : m.factor + j;
          const int64_t left = m.cols - j;
          const bool more = left > lanes;
          const Halves h =
              split(load_scaled(row, factor, left),
                    more ? load_scaled(row + lanes, factor == nullptr ? nullptr : factor + lanes,
                                       left - lanes)
                         : _mm512_setzero_ps());
          _mm512_store_si512(pair[0], h.hi);
          _mm512_store_si512(pair[1], h.lo);
        }
        for (int64_t p = 0; p < pairs; ++p) {
          hi[(j / 2 + p) * pitch + i] = pair[0][p];
          lo[(j / 2 + p) * pitch + i] = pair[1][p];
        }
      }
    }
  }
}

// u [rows, rank] = x [rows, n] (hi + lo), where b [n / 2, 2 width] is hi beside lo.
OF_BF16 void narrow(const bf16* x, int64_t ldx, int64_t rows, int64_t n, const uint32_t* b,
                    int64_t width, bf16* u, int64_t ldu, int64_t rank) {
  alignas(64) uint32_t x_rows[tile_rows * stretch / 2];  // [8, stretch]
  alignas(64) float sum[tile_rows * 2 * kMaxRank];       // [8, 2 width]
  for (int64_t i = 0; i < rows; i += tile_rows) {
    for (int64_t k = 0; k < n; k += stretch) {
      const int64_t part = std::min(stretch, n - k), pitch = padded(part);
      load_rows(x + i * ldx + k, ldx, std::min<int64_t>(rows - i, tile_rows), part, x_rows,
                tile_rows, pitch);
      multiply_block(x_rows, pitch / 2, 1, b + k * width, 2 * width, sum, 2 * width, tile_rows,
                     2 * width, (part + 1) / 2, /*add=*/k > 0);
    }
    for (int64_t r = i; r < std::min(rows, i + tile_rows); ++r) {
      float* hi = sum + (r - i) * 2 * width;
      for (int64_t j = 0; j < width; ++j) hi[j] += hi[width + j];
      store_row(hi, 1, u + r * ldu, rank);
    }
  }
}

// A bf16 matrix to which a product is added, rounded once. whole: no tile reaches over its edge,
// and nothing has to be masked.
template <bool whole>
struct Accumulated {
  bf16* at;
  int64_t ld, rows, cols;
  OF_BF16 __mmask16 inside(int64_t i, int64_t j) const {
    return whole ? __mmask16(0xffff) : first(i < rows ? cols - j : 0);
  }
  OF_BF16 __m512 load(int64_t i, int64_t j) const {
    return widen(_mm256_maskz_loadu_epi16(inside(i, j), at + i * ld + j));
  }
  OF_BF16 void store(int64_t i, int64_t j, __m512 sum) const {
    _mm256_mask_storeu_epi16(at + i * ld + j, inside(i, j), (__m256i)_mm512_cvtneps_pbh(sum));
  }
};

// y [rows, n] += u (hi + lo), where b [2 (rank / 2), pitch] is hi over lo. rows <= group.
OF_BF16 void wide(const bf16* u, int64_t ldu, int64_t rows, int64_t rank, const uint32_t* b,
                  int64_t pitch, bf16* y, int64_t ldy, int64_t n) {
  alignas(64) uint32_t twice[group * 2 * ((kMaxRank + 1) / 2)];  // [group, pairs], u beside itself
  const int64_t half = (rank + 1) / 2, pairs = 2 * half, padded_rows = round_up(rows, tile_rows);
  std::fill(twice, twice + padded_rows * pairs, 0u);
  for (int64_t i = 0; i < rows; ++i)
    for (uint32_t* to : {twice + i * pairs, twice + i * pairs + half})
      std::memcpy(to, u + i * ldu, size_t(rank) * sizeof(bf16));
  for (int64_t i = 0; i < rows; i += tile_rows) {  // along y as it lies in memory
    const uint32_t* a = twice + i * pairs;
    bf16* row = y + i * ldy;
    const int64_t inside = rows - i < tile_rows ? 0 : n / lanes * lanes;
    multiply_block(a, pairs, 1, b, pitch, Accumulated<true>{row, ldy, 0, 0}, tile_rows, inside,
                   pairs);
    multiply_block(a, pairs, 1, b + inside, pitch,
                   Accumulated<false>{row + inside, ldy, rows - i, n - inside}, tile_rows,
                   pitch - inside, pairs);
  }
}

// sum [rank, pitch] = (or += if add) u^T x, x [rows, n]; sum's rows and columns padded. rows <=
// group.
OF_BF16 void outer(const bf16* u, int64_t ldu, int64_t rows, int64_t rank, const bf16* x,
                   int64_t ldx, int64_t n, float* sum, int64_t pitch, bool add) {
  alignas(64) uint32_t u_pairs[group / 2 * kMaxRank];  // [group / 2, width]
  alignas(64) uint32_t x_pairs[group / 2 * block];     // [group / 2, columns]
  const int64_t width = padded(rank), even = round_up(rows, 2);
  load_pairs(u, ldu, rows, rank, u_pairs, even, width);
  for (int64_t j = 0; j < n; j += block) {
    const int64_t columns = padded(std::min(block, n - j));
    load_pairs(x + j, ldx, rows, n - j, x_pairs, even, columns);
    multiply_block(u_pairs, 1, width, x_pairs, columns, sum + j, pitch, round_up(rank, tile_rows),
                   columns, even / 2, add);
  }
}

// The tasks' sums [count, rank, pitch], padded as outer() writes them.
struct Sums {
  int64_t count, rank, pitch;
  float* at;
  Sums(const Tasks& tasks, int64_t rank_, int64_t n)
      : count(tasks.count),
        rank(round_up(rank_, tile_rows)),
        pitch(padded(n)),
        at(scratch<float>(count * rank * pitch)) {}
  float* of(int64_t task) const { return at + task * rank * pitch; }

  // put(r, j, sum of all tasks at [r, j]) for r < used, j < n
  template <class F>
  void add_up(int64_t used, int64_t n, const F& put) const {
    constexpr int64_t columns = 64;
    parallel_for(n, columns, [&](int64_t begin, int64_t end) {
      for (int64_t r = 0; r < used; ++r) {
        float total[columns] = {};
        for (int64_t t = 0; t < count; ++t)
          for (int64_t j = begin; j < end; ++j) total[j - begin] += of(t)[r * pitch + j];
        for (int64_t j = begin; j < end; ++j) put(r, j, total[j - begin]);
      }
    });
  }
};

}  // namespace

void lora_down(const LoraDown<bf16>& p) {
  const int64_t width = padded(p.rank);
  uint32_t* b = scratch<uint32_t>((p.in + 1) / 2 * 2 * width);
  halves_along_rows({p.a, p.lda, p.rank, p.in, nullptr}, b, b + width, 2 * width);
  const Tasks tasks(p.rows);
#pragma omp parallel for schedule(dynamic)
  for (int64_t t = 0; t < tasks.count; ++t) {
    const int64_t i = tasks.begin(t);
    narrow(p.x + i * p.ldx, p.ldx, tasks.end(t) - i, p.in, b, width, p.u + i * p.ldu, p.ldu,
           p.rank);
  }
}

void lora_up(const LoraUp<bf16>& p) {
  const int64_t pitch = padded(p.out), half = (p.rank + 1) / 2;
  uint32_t* hi = scratch<uint32_t>(2 * half * pitch);
  halves_along_rows({p.b, p.ldb, p.out, p.rank, p.scale}, hi, hi + half * pitch, pitch);
  const Tasks tasks(p.rows);
#pragma omp parallel for schedule(dynamic)
  for (int64_t t = 0; t < tasks.count; ++t) {
    for (int64_t i = tasks.begin(t); i < tasks.end(t); i += group) {
      const int64_t n = std::min(group, tasks.end(t) - i);
      wide(p.u + i * p.ldu, p.ldu, n, p.rank, hi, pitch, p.y + i * p.ldy, p.ldy, p.out);
    }
  }
}

void lora_up_backward(const LoraUpBackward<bf16>& p) {
  const int64_t width = padded(p.rank);
  uint32_t* hi = scratch<uint32_t>((p.out + 1) / 2 * 2 * width);
  halves_down_rows({p.b, p.ldb, p.out, p.rank, p.scale}, hi, hi + width, 2 * width);
  const Tasks tasks(p.rows);
  const Sums sums(tasks, p.rank, p.out);  // [rank, out]
#pragma omp parallel for schedule(dynamic)
  for (int64_t t = 0; t < tasks.count; ++t) {
    for (int64_t i = tasks.begin(t); i < tasks.end(t); i += group) {
      const int64_t n = std::min(group, tasks.end(t) - i);
      narrow(p.dy + i * p.lddy, p.lddy, n, p.out, hi, width, p.du + i * p.lddu, p.lddu, p.rank);
      outer(p.u + i * p.ldu, p.ldu, n, p.rank, p.dy + i * p.lddy, p.lddy, p.out, sums.of(t),
            sums.pitch, i > tasks.begin(t));
    }
  }
  sums.add_up(p.rank, p.out, [&](int64_t r, int64_t o, float sum) {
    float& to = p.db[o * p.lddb + r];
    to = (p.accumulate ? to : 0) + p.scale[r] * sum;
  });
}

void lora_down_backward(const LoraDownBackward<bf16>& p) {
  const int64_t pitch = padded(p.in), half = (p.rank + 1) / 2;
  uint32_t* hi = scratch<uint32_t>(2 * half * pitch);
  if (p.dx != nullptr)
    halves_down_rows({p.a, p.lda, p.rank, p.in, nullptr}, hi, hi + half * pitch, pitch);
  const Tasks tasks(p.rows);
  const Sums sums(tasks, p.rank, p.in);
#pragma omp parallel for schedule(dynamic)
  for (int64_t t = 0; t < tasks.count; ++t) {
    for (int64_t i = tasks.begin(t); i < tasks.end(t); i += group) {
      const int64_t n = std::min(group, tasks.end(t) - i);
      outer(p.du + i * p.lddu, p.lddu, n, p.rank, p.x + i * p.ldx, p.ldx, p.in, sums.of(t), pitch,
            i > tasks.begin(t));
      if (p.dx != nullptr)
        wide(p.du + i * p.lddu, p.lddu, n, p.rank, hi, pitch, p.dx + i * p.lddx, p.lddx, p.in);
    }
  }
  sums.add_up(p.rank, p.in, [&](int64_t r, int64_t j, float sum) {
    float& to = p.da[r * p.ldda + j];
    to = (p.accumulate ? to : 0) + sum;
  });
}

#else  // native_bf16() is false

#define OF_NEVER OF_CHECK(false, "lora by pairs of bf16 on a processor without them")
void lora_down(const LoraDown<bf16>&) {
  OF_NEVER;
}
void lora_up(const LoraUp<bf16>&) {
  OF_NEVER;
}
void lora_up_backward(const LoraUpBackward<bf16>&) {
  OF_NEVER;
}
void lora_down_backward(const LoraDownBackward<bf16>&) {
  OF_NEVER;
}

#endif

}  // namespace orthofed::cpu::pairs
