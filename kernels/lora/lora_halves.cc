#include "kernels/lora/lora_halves.h"

#include <algorithm>
#include <vector>

#include "kernels/core/parallel.h"
#include "kernels/matmul/matmul.h"

namespace orthofed::cpu::halves {
namespace {

constexpr int64_t rows_per_chunk = 64;
constexpr const float* no_bias = nullptr;

// Memory of the calling thread, for one call: an adapter's halves are `which` = 0, the other is 1.
template <class T, int which>
T* scratch(int64_t n) {
  thread_local std::vector<T> memory;
  if (memory.size() < size_t(n)) memory.resize(size_t(n));
  return memory.data();
}

void split(float a, bf16& hi, bf16& lo) {
  hi = bf16(a);
  lo = bf16(a - float(hi));
}

// A [rank, in] -> [2 rank, in]: hi above lo
const bf16* halves_of_rows(const float* a, int64_t lda, int64_t rank, int64_t in) {
  bf16* to = scratch<bf16, 0>(2 * rank * in);
  parallel_for(rank, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t i = 0; i < in; ++i) {
        split(a[r * lda + i], to[r * in + i], to[(rank + r) * in + i]);
      }
    }
  });
  return to;
}

// scale [rank] * B [out, rank] -> [out, 2 rank]: hi left of lo
const bf16* halves_of_columns(const float* b, int64_t ldb, const float* scale, int64_t out,
                              int64_t rank) {
  bf16* to = scratch<bf16, 0>(2 * out * rank);
  parallel_for(out, rows_per_chunk, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      bf16* row = to + 2 * o * rank;
      for (int64_t r = 0; r < rank; ++r) split(scale[r] * b[o * ldb + r], row[r], row[rank + r]);
    }
  });
  return to;
}

// u [rows, rank] -> [rows, 2 rank] = [u u]
const bf16* twice(const bf16* u, int64_t ldu, int64_t rows, int64_t rank) {
  bf16* to = scratch<bf16, 1>(2 * rows * rank);
  parallel_for(rows, rows_per_chunk, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::copy_n(u + i * ldu, rank, to + 2 * i * rank);
      std::copy_n(u + i * ldu, rank, to + (2 * i + 1) * rank);
    }
  });
  return to;
}

// u [rows, rank] = the sum of both halves of x [rows, k] op(B), where op(B) is [k, 2 rank]
void sum_of_halves(const bf16* x, int64_t ldx, const bf16* b, int64_t ldb, Op op_b, bf16* u,
                   int64_t ldu, int64_t rows, int64_t k, int64_t rank) {
  float* both = scratch<float, 1>(2 * rows * rank);  // [rows, 2 rank]
  matmul(x, b, both, no_bias, /*accumulate=*/false,
         {.m = rows, .n = 2 * rank, .k = k, .lda = ldx, .ldb = ldb, .ldc = 2 * rank, .op_b = op_b});
  parallel_for(rows, rows_per_chunk, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = both + 2 * i * rank;
      for (int64_t r = 0; r < rank; ++r) u[i * ldu + r] = bf16(row[r] + row[rank + r]);
    }
  });
}

}  // namespace

bool serve() {
  return native_bf16() && onednn::available();
}

void lora_down(const bf16* x, int64_t ldx, const float* a, int64_t lda, bf16* u, int64_t ldu,
               int64_t rows, int64_t in, int64_t rank) {
  sum_of_halves(x, ldx, halves_of_rows(a, lda, rank, in), in, Op::transpose, u, ldu, rows, in,
                rank);
}

void lora_up(const bf16* u, int64_t ldu, const float* b, int64_t ldb, const float* scale, bf16* y,
             int64_t ldy, int64_t rows, int64_t out, int64_t rank) {
  const int64_t k = 2 * rank;
  matmul(twice(u, ldu, rows, rank), halves_of_columns(b, ldb, scale, out, rank), y, no_bias,
         /*accumulate=*/true,
         {.m = rows, .n = out, .k = k, .lda = k, .ldb = k, .ldc = ldy, .op_b = Op::transpose});
}

void lora_up_backward(const bf16* dy, int64_t lddy, const bf16* u, int64_t ldu, const float* b,
                      int64_t ldb, const float* scale, bf16* du, int64_t lddu, float* db,
                      int64_t lddb, bool accumulate, int64_t rows, int64_t out, int64_t rank) {
  sum_of_halves(dy, lddy, halves_of_columns(b, ldb, scale, out, rank), 2 * rank, Op::none, du, lddu,
                rows, out, rank);
  // Of db's two forms the one whose long operand is not transposed.
  float* sums = scratch<float, 1>(rank * out);  // [rank, out] = u^T dy
  matmul(
      u, dy, sums, no_bias, /*accumulate=*/false,
      {.m = rank, .n = out, .k = rows, .lda = ldu, .ldb = lddy, .ldc = out, .op_a = Op::transpose});
  for (int64_t o = 0; o < out; ++o) {
    float* to = db + o * lddb;
    for (int64_t r = 0; r < rank; ++r) {
      to[r] = (accumulate ? to[r] : 0) + scale[r] * sums[r * out + o];
    }
  }
}

void lora_down_backward(const bf16* du, int64_t lddu, const bf16* x, int64_t ldx, const float* a,
                        int64_t lda, float* da, int64_t ldda, bool accumulate, bf16* dx,
                        int64_t lddx, int64_t rows, int64_t in, int64_t rank) {
  matmul(
      du, x, da, no_bias, accumulate,
      {.m = rank, .n = in, .k = rows, .lda = lddu, .ldb = ldx, .ldc = ldda, .op_a = Op::transpose});
  if (dx == nullptr) return;
  const int64_t k = 2 * rank;
  matmul(twice(du, lddu, rows, rank), halves_of_rows(a, lda, rank, in), dx, no_bias,
         /*accumulate=*/true, {.m = rows, .n = in, .k = k, .lda = k, .ldb = in, .ldc = lddx});
}

}  // namespace orthofed::cpu::halves
