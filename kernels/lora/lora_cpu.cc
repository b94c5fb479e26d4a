#include <algorithm>
#include <type_traits>

#include "kernels/core/check.h"
#include "kernels/core/parallel.h"
#include "kernels/lora/lora.h"
#include "kernels/lora/lora_pairs.h"
#include "kernels/matmul/matmul.h"

// Skinny matrix products. The scale is folded into a copy of B on the stack, which holds all of B
// for rank 16 and 4096 outputs; a larger B goes through it in parts that never split a sum.
namespace orthofed::cpu {
namespace {

constexpr int64_t tile_elements = 64 * 1024;
constexpr int64_t rows_per_chunk = 8, cols_per_chunk = 256;

// A product of activations (T) and an adapter (Accum<T>): matmul where the two are one type.
template <class T, class B, class C>
void product(const T* a, const B* b, C* c, bool accumulate, const MatmulShape& shape) {
  const Matmul<T, C, B> p{.a = a, .b = b, .c = c, .accumulate = accumulate, .shape = shape};
  if constexpr (std::is_same_v<T, B>)
    matmul(p);
  else
    matmul_blocked(p);
}

// to [rows, cols] dense = scale [cols] * b [rows, cols]
template <class A>
void scale_columns(const A* b, int64_t ldb, const A* scale, A* to, int64_t rows, int64_t cols) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) to[i * cols + j] = scale[j] * b[i * ldb + j];
  }
}

}  // namespace

template <class T>
void lora_down(const LoraDown<T>& p) {
  if constexpr (std::is_same_v<T, bf16>)
    if (pairs::serve_lora(p.rank)) return pairs::lora_down(p);
  product(p.x, p.a, p.u, /*accumulate=*/false,
          {.m = p.rows,
           .n = p.rank,
           .k = p.in,
           .lda = p.ldx,
           .ldb = p.lda,
           .ldc = p.ldu,
           .op_b = Op::transpose});
}

template <class T>
void lora_up(const LoraUp<T>& p) {
  if constexpr (std::is_same_v<T, bf16>)
    if (pairs::serve_lora(p.rank)) return pairs::lora_up(p);
  OF_CHECK(p.rank <= tile_elements, "lora: the rank is too large");
  alignas(64) Accum<T> scaled[tile_elements];  // [part, rank]
  const int64_t part = tile_elements / std::max<int64_t>(p.rank, 1);
  for (int64_t o = 0; o < p.out; o += part) {
    const int64_t n = std::min(part, p.out - o);
    scale_columns(p.b + o * p.ldb, p.ldb, p.scale, scaled, n, p.rank);
    product(p.u, scaled, p.y + o, /*accumulate=*/true,
            {.m = p.rows,
             .n = n,
             .k = p.rank,
             .lda = p.ldu,
             .ldb = p.rank,
             .ldc = p.ldy,
             .op_b = Op::transpose});
  }
}

template <class T>
void lora_up_backward(const LoraUpBackward<T>& p) {
  if constexpr (std::is_same_v<T, bf16>)
    if (pairs::serve_lora(p.rank)) return pairs::lora_up_backward(p);
  OF_CHECK(p.out <= tile_elements, "lora: too many outputs");
  alignas(64) Accum<T> tile[tile_elements];  // [out, part]
  const int64_t part = tile_elements / std::max<int64_t>(p.out, 1);
  for (int64_t r = 0; r < p.rank; r += part) {
    const int64_t n = std::min(part, p.rank - r);
    scale_columns(p.b + r, p.ldb, p.scale + r, tile, p.out, n);
    product(p.dy, tile, p.du + r, /*accumulate=*/false,
            {.m = p.rows, .n = n, .k = p.out, .lda = p.lddy, .ldb = n, .ldc = p.lddu});
    product(p.dy, p.u + r, tile, /*accumulate=*/false,
            {.m = p.out,
             .n = n,
             .k = p.rows,
             .lda = p.lddy,
             .ldb = p.ldu,
             .ldc = n,
             .op_a = Op::transpose});
    for (int64_t i = 0; i < p.out; ++i) {
      Accum<T>* to = p.db + i * p.lddb + r;
      for (int64_t j = 0; j < n; ++j) {
        to[j] = (p.accumulate ? to[j] : 0) + p.scale[r + j] * tile[i * n + j];
      }
    }
  }
}

template <class T>
void lora_down_backward(const LoraDownBackward<T>& p) {
  if constexpr (std::is_same_v<T, bf16>)
    if (pairs::serve_lora(p.rank)) return pairs::lora_down_backward(p);
  product(p.du, p.x, p.da, p.accumulate,
          {.m = p.rank,
           .n = p.in,
           .k = p.rows,
           .lda = p.lddu,
           .ldb = p.ldx,
           .ldc = p.ldda,
           .op_a = Op::transpose});
  if (p.dx == nullptr) return;
  product(p.du, p.a, p.dx, /*accumulate=*/true,
          {.m = p.rows, .n = p.in, .k = p.rank, .lda = p.lddu, .ldb = p.lda, .ldc = p.lddx});
}

template <class T>
void lora_merge(const LoraMerge<T>& p) {
  OF_CHECK(p.ldw >= p.in && p.lda >= p.in && p.ldb >= p.rank && p.ldm >= p.in,
           "lora_merge: a pitch is smaller than its row");
  parallel_for(p.out, rows_per_chunk, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j0 = 0; j0 < p.in; j0 += cols_per_chunk) {
        const int64_t cols = std::min(cols_per_chunk, p.in - j0);
        Accum<T> sum[cols_per_chunk];
        for (int64_t j = 0; j < cols; ++j) sum[j] = p.w[i * p.ldw + j0 + j];
        for (int64_t r = 0; r < p.rank; ++r) {
          const Accum<T> factor = p.scale[r] * p.b[i * p.ldb + r];
          const Accum<T>* row = p.a + r * p.lda + j0;
          for (int64_t j = 0; j < cols; ++j) sum[j] += factor * row[j];
        }
        for (int64_t j = 0; j < cols; ++j) p.merged[i * p.ldm + j0 + j] = T(sum[j]);
      }
    }
  });
}

template <class T>
void lora_scale(const LoraScale<T>& p) {
  for (int64_t i = 0; i < p.out; ++i)
    for (int64_t r = 0; r < p.rank; ++r) p.v[i * p.ldv + r] = T(p.scale[r] * p.b[i * p.ldb + r]);
}

#define OF_INSTANTIATE(T)                                       \
  template void lora_down(const LoraDown<T>&);                  \
  template void lora_up(const LoraUp<T>&);                      \
  template void lora_up_backward(const LoraUpBackward<T>&);     \
  template void lora_down_backward(const LoraDownBackward<T>&); \
  template void lora_merge(const LoraMerge<T>&);                \
  template void lora_scale(const LoraScale<T>&);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
