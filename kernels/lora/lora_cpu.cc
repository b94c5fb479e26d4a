#include <algorithm>
#include <type_traits>

#include "kernels/core/check.h"
#include "kernels/core/parallel.h"
#include "kernels/lora/lora.h"
#include "kernels/lora/lora_pairs.h"
#include "kernels/matmul/matmul.h"

// Five skinny matrix products. The scale is folded into a copy of B on the stack, which holds all
// of B for rank 16 and 4096 outputs; a larger B goes through it in parts that never split a sum.
namespace orthofed::cpu {
namespace {

constexpr int64_t tile_elements = 64 * 1024;
constexpr int64_t rows_per_chunk = 8, cols_per_chunk = 256;

// A product of activations (T) and an adapter (Accum<T>): matmul where the two are one type.
template <class T, class B, class C>
void product(const T* a, const B* b, C* c, bool accumulate, const MatmulShape& shape) {
  const Accum<T>* no_bias = nullptr;
  if constexpr (std::is_same_v<T, B>) {
    matmul(a, b, c, no_bias, accumulate, shape);
  } else {
    matmul_blocked(a, b, c, no_bias, accumulate, shape);
  }
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
void lora_down(const T* x, int64_t ldx, const Accum<T>* a, int64_t lda, T* u, int64_t ldu,
               int64_t rows, int64_t in, int64_t rank) {
  if constexpr (std::is_same_v<T, bf16>)
    if (pairs::serve_lora(rank)) return pairs::lora_down(x, ldx, a, lda, u, ldu, rows, in, rank);
  product(
      x, a, u, /*accumulate=*/false,
      {.m = rows, .n = rank, .k = in, .lda = ldx, .ldb = lda, .ldc = ldu, .op_b = Op::transpose});
}

template <class T>
void lora_up(const T* u, int64_t ldu, const Accum<T>* b, int64_t ldb, const Accum<T>* scale, T* y,
             int64_t ldy, int64_t rows, int64_t out, int64_t rank) {
  if constexpr (std::is_same_v<T, bf16>)
    if (pairs::serve_lora(rank))
      return pairs::lora_up(u, ldu, b, ldb, scale, y, ldy, rows, out, rank);
  OF_CHECK(rank <= tile_elements, "lora: the rank is too large");
  alignas(64) Accum<T> scaled[tile_elements];  // [part, rank]
  const int64_t part = tile_elements / std::max<int64_t>(rank, 1);
  for (int64_t o = 0; o < out; o += part) {
    const int64_t n = std::min(part, out - o);
    scale_columns(b + o * ldb, ldb, scale, scaled, n, rank);
    product(
        u, scaled, y + o, /*accumulate=*/true,
        {.m = rows, .n = n, .k = rank, .lda = ldu, .ldb = rank, .ldc = ldy, .op_b = Op::transpose});
  }
}

template <class T>
void lora_up_backward(const T* dy, int64_t lddy, const T* u, int64_t ldu, const Accum<T>* b,
                      int64_t ldb, const Accum<T>* scale, T* du, int64_t lddu, Accum<T>* db,
                      int64_t lddb, bool accumulate, int64_t rows, int64_t out, int64_t rank) {
  if constexpr (std::is_same_v<T, bf16>)
    if (pairs::serve_lora(rank))
      return pairs::lora_up_backward(dy, lddy, u, ldu, b, ldb, scale, du, lddu, db, lddb,
                                     accumulate, rows, out, rank);
  OF_CHECK(out <= tile_elements, "lora: too many outputs");
  alignas(64) Accum<T> tile[tile_elements];  // [out, part]
  const int64_t part = tile_elements / std::max<int64_t>(out, 1);
  for (int64_t r = 0; r < rank; r += part) {
    const int64_t n = std::min(part, rank - r);
    scale_columns(b + r, ldb, scale + r, tile, out, n);
    product(dy, tile, du + r, /*accumulate=*/false,
            {.m = rows, .n = n, .k = out, .lda = lddy, .ldb = n, .ldc = lddu});
    product(
        dy, u + r, tile, /*accumulate=*/false,
        {.m = out, .n = n, .k = rows, .lda = lddy, .ldb = ldu, .ldc = n, .op_a = Op::transpose});
    for (int64_t i = 0; i < out; ++i) {
      Accum<T>* to = db + i * lddb + r;
      for (int64_t j = 0; j < n; ++j) {
        to[j] = (accumulate ? to[j] : 0) + scale[r + j] * tile[i * n + j];
      }
    }
  }
}

template <class T>
void lora_down_backward(const T* du, int64_t lddu, const T* x, int64_t ldx, const Accum<T>* a,
                        int64_t lda, Accum<T>* da, int64_t ldda, bool accumulate, T* dx,
                        int64_t lddx, int64_t rows, int64_t in, int64_t rank) {
  if constexpr (std::is_same_v<T, bf16>)
    if (pairs::serve_lora(rank))
      return pairs::lora_down_backward(du, lddu, x, ldx, a, lda, da, ldda, accumulate, dx, lddx,
                                       rows, in, rank);
  product(
      du, x, da, accumulate,
      {.m = rank, .n = in, .k = rows, .lda = lddu, .ldb = ldx, .ldc = ldda, .op_a = Op::transpose});
  if (dx == nullptr) return;
  product(du, a, dx, /*accumulate=*/true,
          {.m = rows, .n = in, .k = rank, .lda = lddu, .ldb = lda, .ldc = lddx});
}

template <class T>
void lora_merge(const Accum<T>* w, int64_t ldw, const Accum<T>* a, int64_t lda, const Accum<T>* b,
                int64_t ldb, const Accum<T>* scale, T* merged, int64_t ldm, int64_t out, int64_t in,
                int64_t rank) {
  OF_CHECK(ldw >= in && lda >= in && ldb >= rank && ldm >= in,
           "lora_merge: a pitch is smaller than its row");
  parallel_for(out, rows_per_chunk, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j0 = 0; j0 < in; j0 += cols_per_chunk) {
        const int64_t cols = std::min(cols_per_chunk, in - j0);
        Accum<T> sum[cols_per_chunk];
        for (int64_t j = 0; j < cols; ++j) sum[j] = w[i * ldw + j0 + j];
        for (int64_t r = 0; r < rank; ++r) {
          const Accum<T> factor = scale[r] * b[i * ldb + r];
          const Accum<T>* row = a + r * lda + j0;
          for (int64_t j = 0; j < cols; ++j) sum[j] += factor * row[j];
        }
        for (int64_t j = 0; j < cols; ++j) merged[i * ldm + j0 + j] = T(sum[j]);
      }
    }
  });
}

template <class T>
void lora_scale(const Accum<T>* b, int64_t ldb, const Accum<T>* scale, T* v, int64_t ldv,
                int64_t out, int64_t rank) {
  for (int64_t i = 0; i < out; ++i)
    for (int64_t r = 0; r < rank; ++r) v[i * ldv + r] = T(scale[r] * b[i * ldb + r]);
}

#define OF_INSTANTIATE(T, A)                                                                       \
  template void lora_down<T>(const T*, int64_t, const A*, int64_t, T*, int64_t, int64_t, int64_t,  \
                             int64_t);                                                             \
  template void lora_up<T>(const T*, int64_t, const A*, int64_t, const A*, T*, int64_t, int64_t,   \
                           int64_t, int64_t);                                                      \
  template void lora_up_backward<T>(const T*, int64_t, const T*, int64_t, const A*, int64_t,       \
                                    const A*, T*, int64_t, A*, int64_t, bool, int64_t, int64_t,    \
                                    int64_t);                                                      \
  template void lora_down_backward<T>(const T*, int64_t, const T*, int64_t, const A*, int64_t, A*, \
                                      int64_t, bool, T*, int64_t, int64_t, int64_t, int64_t);      \
  template void lora_merge<T>(const A*, int64_t, const A*, int64_t, const A*, int64_t, const A*,   \
                              T*, int64_t, int64_t, int64_t, int64_t);                             \
  template void lora_scale<T>(const A*, int64_t, const A*, T*, int64_t, int64_t, int64_t);
OF_INSTANTIATE(double, double)
OF_INSTANTIATE(float, float)
OF_INSTANTIATE(bf16, float)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
