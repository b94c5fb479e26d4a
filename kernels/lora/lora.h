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
// twice, x in, dx in and out. Limits: rank and out at most 65,536.
#pragma once
#include <cstdint>

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

}  // namespace orthofed::cpu
