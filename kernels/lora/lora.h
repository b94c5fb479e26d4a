// Low-rank adaptation (Hu et al., arXiv 2106.09685):  y = W x + s B A x,  A [r, in], B [out, r].
//
// The general and the personal adapter of a layer are stacked: A [R, in], B [out, R] with
// R = r_g + r_p, and `scale` [R] holds s of each column, so both cost one pass. u = A x [rows, R]
// is computed by a matrix product and saved; these are the skinny pieces around it. Instantiated
// for double, float and bf16 (adapters themselves are Accum<T>).
//
// Error: each result is one matrix product (matmul.h) and one more rounding, of the scaled B or of
// the scaled sum: |error| <= (k + 3) eps/2 sum |terms| + eps(T)/2 |result| with eps of Accum<T> and
// k the length of the sum. du as given out, rounded to T, is what lora_down_backward reads. Same
// bits at every run with the same number of threads (any number, where matmul is the blocked loop).
// 2 rows rank (in + out) flops forward, twice that backward. Traffic: x in, y in and out; dy in
// twice (once on a GPU and by pairs), x in, dx in and out. Limits: rank and out at most 65,536, on
// a GPU rank at most 256.
//
// With T = bf16 an adapter is split into two bf16 pieces where bf16 is multiplied natively (a GPU's
// tensor cores; cpu::native_bf16(), lora_pairs.h), so that u, y, du and dx err by another 2^-17 sum
// |terms|, far below their own rounding to bf16. On a GPU float runs on tensor cores as well, in
// pieces (lora.cu): k + 3 above becomes k + 5. db, da and merged are not split in bf16. An infinity
// may come out as NaN, and elements below 2^-110 lose bits.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/core/cost.h"
#include "kernels/core/types.h"

namespace orthofed::cpu {

// u [rows, rank] = x A^T
template <class T>
void lora_down(const T* x, int64_t ldx, const Accum<T>* a, int64_t lda, T* u, int64_t ldu,
               int64_t rows, int64_t in, int64_t rank);

// y [rows, out] += (scale * u) B^T
template <class T>
void lora_up(const T* u, int64_t ldu, const Accum<T>* b, int64_t ldb, const Accum<T>* scale, T* y,
             int64_t ldy, int64_t rows, int64_t out, int64_t rank);

// dy [rows, out]:  du [rows, rank] = scale * (dy B),  db [out, rank] = scale * (dy^T u).
// db is written, or added to if accumulate.
template <class T>
void lora_up_backward(const T* dy, int64_t lddy, const T* u, int64_t ldu, const Accum<T>* b,
                      int64_t ldb, const Accum<T>* scale, T* du, int64_t lddu, Accum<T>* db,
                      int64_t lddb, bool accumulate, int64_t rows, int64_t out, int64_t rank);

// da [rank, in] = du^T x, written or added to if accumulate;  dx [rows, in] += du A (dx null:
// nothing below needs it).
template <class T>
void lora_down_backward(const T* du, int64_t lddu, const T* x, int64_t ldx, const Accum<T>* a,
                        int64_t lda, Accum<T>* da, int64_t ldda, bool accumulate, T* dx,
                        int64_t lddx, int64_t rows, int64_t in, int64_t rank);

// merged [out, in] = T(W + (scale * B) A), rounded once. merged may be w itself.
template <class T>
void lora_merge(const Accum<T>* w, int64_t ldw, const Accum<T>* a, int64_t lda, const Accum<T>* b,
                int64_t ldb, const Accum<T>* scale, T* merged, int64_t ldm, int64_t out, int64_t in,
                int64_t rank);

// v [out, rank] = T(scale * B): B in a matrix product's tail (matmul.h).
template <class T>
void lora_scale(const Accum<T>* b, int64_t ldb, const Accum<T>* scale, T* v, int64_t ldv,
                int64_t out, int64_t rank);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost lora_down(const T* x, int64_t, const Accum<T>* a, int64_t, T* u, int64_t, int64_t rows,
               int64_t in, int64_t rank) {
  return {2.0 * rows * in * rank, moved(x, double(rows) * in) + moved(a, double(rank) * in) +
                                      written(u, double(rows) * rank)};
}
template <class T>
Cost lora_up(const T* u, int64_t, const Accum<T>* b, int64_t, const Accum<T>* scale, T* y, int64_t,
             int64_t rows, int64_t out, int64_t rank) {
  return {2.0 * rows * out * rank, moved(u, double(rows) * rank) + moved(b, double(out) * rank) +
                                       moved(scale, rank) + written(y, double(rows) * out, true)};
}
template <class T>
Cost lora_up_backward(const T* dy, int64_t, const T* u, int64_t, const Accum<T>* b, int64_t,
                      const Accum<T>* scale, T* du, int64_t, Accum<T>* db, int64_t, bool accumulate,
                      int64_t rows, int64_t out, int64_t rank) {
  return {4.0 * rows * out * rank, moved(dy, double(rows) * out) + moved(u, double(rows) * rank) +
                                       moved(b, double(out) * rank) + moved(scale, rank) +
                                       written(du, double(rows) * rank) +
                                       written(db, double(out) * rank, accumulate)};
}
template <class T>
Cost lora_down_backward(const T* du, int64_t, const T* x, int64_t, const Accum<T>* a, int64_t,
                        Accum<T>* da, int64_t, bool accumulate, T* dx, int64_t, int64_t rows,
                        int64_t in, int64_t rank) {
  const double product = 2.0 * rows * in * rank;
  return {dx == nullptr ? product : 2 * product,
          moved(du, double(rows) * rank) + moved(x, double(rows) * in) +
              moved(a, dx == nullptr ? 0 : double(rank) * in) +
              written(da, double(rank) * in, accumulate) + written(dx, double(rows) * in, true)};
}
template <class T>
Cost lora_merge(const Accum<T>* w, int64_t, const Accum<T>* a, int64_t, const Accum<T>* b, int64_t,
                const Accum<T>* scale, T* merged, int64_t, int64_t out, int64_t in, int64_t rank) {
  return {2.0 * out * in * rank, moved(w, double(out) * in) + moved(a, double(rank) * in) +
                                     moved(b, double(out) * rank) + moved(scale, rank) +
                                     written(merged, double(out) * in)};
}
template <class T>
Cost lora_scale(const Accum<T>* b, int64_t, const Accum<T>* scale, T* v, int64_t, int64_t out,
                int64_t rank) {
  const double n = double(out) * rank;
  return {n, moved(b, n) + moved(scale, rank) + written(v, n)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void lora_down(const T* x, int64_t ldx, const Accum<T>* a, int64_t lda, T* u, int64_t ldu,
               int64_t rows, int64_t in, int64_t rank, const Stream& stream);

template <class T, class Stream>
void lora_up(const T* u, int64_t ldu, const Accum<T>* b, int64_t ldb, const Accum<T>* scale, T* y,
             int64_t ldy, int64_t rows, int64_t out, int64_t rank, const Stream& stream);

template <class T, class Stream>
void lora_up_backward(const T* dy, int64_t lddy, const T* u, int64_t ldu, const Accum<T>* b,
                      int64_t ldb, const Accum<T>* scale, T* du, int64_t lddu, Accum<T>* db,
                      int64_t lddb, bool accumulate, int64_t rows, int64_t out, int64_t rank,
                      const Stream& stream);

template <class T, class Stream>
void lora_down_backward(const T* du, int64_t lddu, const T* x, int64_t ldx, const Accum<T>* a,
                        int64_t lda, Accum<T>* da, int64_t ldda, bool accumulate, T* dx,
                        int64_t lddx, int64_t rows, int64_t in, int64_t rank, const Stream& stream);

template <class T, class Stream>
void lora_merge(const Accum<T>* w, int64_t ldw, const Accum<T>* a, int64_t lda, const Accum<T>* b,
                int64_t ldb, const Accum<T>* scale, T* merged, int64_t ldm, int64_t out, int64_t in,
                int64_t rank, const Stream& stream);

template <class T, class Stream>
void lora_scale(const Accum<T>* b, int64_t ldb, const Accum<T>* scale, T* v, int64_t ldv,
                int64_t out, int64_t rank, const Stream& stream);

// How many rows one block sums, a function of the shape alone: enough blocks for the 132
// multiprocessors of an H100, but at most 384 rows and 48 KiB of shared memory for what the block
// keeps of each row (across: fp32 sums; down: u or du in bf16 pieces).
template <class T>
int64_t lora_block_rows(int64_t rows, int64_t rank, bool across, bool down) {
  const int64_t padded_rank = rank <= 16 ? 16 : 64, pieces = sizeof(T) == 2 ? 1 : 3;
  const int64_t row_bytes = padded_rank * ((across ? 4 : 0) + (down ? 2 * pieces : 0));
  const int64_t most = std::min<int64_t>(384, 48 * 1024 / row_bytes / 64 * 64);
  return std::clamp<int64_t>((rows + 132 * 64 - 1) / (132 * 64) * 64, 64, most);
}

// Scratch memory in bytes, of lora_up_backward and lora_down_backward: the blocks' sums.
template <class T>
size_t lora_up_backward_scratch(int64_t rows, int64_t out, int64_t rank) {
  const int64_t block = lora_block_rows<T>(rows, rank, true, true);
  return size_t((rows + block - 1) / block * out * rank) * sizeof(float);
}
template <class T>
size_t lora_down_backward_scratch(int64_t rows, int64_t in, int64_t rank) {
  const int64_t block = lora_block_rows<T>(rows, rank, false, true);
  return size_t((rows + block - 1) / block * in * rank) * sizeof(float);
}

}  // namespace orthofed::gpu
