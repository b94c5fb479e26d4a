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

namespace orthofed {

// u = x A^T
template <class T>
struct LoraDown {
  const T* x;  // [rows, in] pitch ldx
  int64_t ldx;
  const Accum<T>* a;  // [rank, in] pitch lda
  int64_t lda;
  T* u;  // [rows, rank] pitch ldu
  int64_t ldu;
  int64_t rows, in, rank;
};

// y += (scale * u) B^T
template <class T>
struct LoraUp {
  const T* u;  // [rows, rank] pitch ldu
  int64_t ldu;
  const Accum<T>* b;  // [out, rank] pitch ldb
  int64_t ldb;
  const Accum<T>* scale;  // [rank]
  T* y;                   // [rows, out] pitch ldy
  int64_t ldy;
  int64_t rows, out, rank;
};

// du = scale * (dy B),  db = scale * (dy^T u).
// Scratch on a GPU: lora_up_backward_scratch<T>(rows, out, rank) bytes.
template <class T>
struct LoraUpBackward {
  const T* dy;  // [rows, out] pitch lddy
  int64_t lddy;
  const T* u;  // [rows, rank] pitch ldu
  int64_t ldu;
  const Accum<T>* b;  // [out, rank] pitch ldb
  int64_t ldb;
  const Accum<T>* scale;  // [rank]
  T* du;                  // [rows, rank] pitch lddu
  int64_t lddu;
  Accum<T>* db;  // [out, rank] pitch lddb
  int64_t lddb;
  bool accumulate = false;  // add to what is in db
  int64_t rows, out, rank;
};

// da = du^T x,  dx += du A.
// Scratch on a GPU: lora_down_backward_scratch<T>(rows, in, rank) bytes.
template <class T>
struct LoraDownBackward {
  const T* du;  // [rows, rank] pitch lddu
  int64_t lddu;
  const T* x;  // [rows, in] pitch ldx
  int64_t ldx;
  const Accum<T>* a;  // [rank, in] pitch lda
  int64_t lda;
  Accum<T>* da;  // [rank, in] pitch ldda
  int64_t ldda;
  bool accumulate = false;  // add to what is in da
  T* dx = nullptr;          // [rows, in] pitch lddx; null: nothing below needs it
  int64_t lddx = 0;
  int64_t rows, in, rank;
};

// merged = T(W + (scale * B) A), rounded once. merged may be w.
template <class T>
struct LoraMerge {
  const Accum<T>* w;  // [out, in] pitch ldw
  int64_t ldw;
  const Accum<T>* a;  // [rank, in] pitch lda
  int64_t lda;
  const Accum<T>* b;  // [out, rank] pitch ldb
  int64_t ldb;
  const Accum<T>* scale;  // [rank]
  T* merged;              // [out, in] pitch ldm
  int64_t ldm;
  int64_t out, in, rank;
};

// v = T(scale * B): B in a matrix product's tail (matmul.h).
template <class T>
struct LoraScale {
  const Accum<T>* b;  // [out, rank] pitch ldb
  int64_t ldb;
  const Accum<T>* scale;  // [rank]
  T* v;                   // [out, rank] pitch ldv
  int64_t ldv;
  int64_t out, rank;
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void lora_down(const LoraDown<T>& p);
template <class T>
void lora_up(const LoraUp<T>& p);
template <class T>
void lora_up_backward(const LoraUpBackward<T>& p);
template <class T>
void lora_down_backward(const LoraDownBackward<T>& p);
template <class T>
void lora_merge(const LoraMerge<T>& p);
template <class T>
void lora_scale(const LoraScale<T>& p);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost lora_down(const LoraDown<T>& p) {
  const double rows = double(p.rows), in = double(p.in), rank = double(p.rank);
  return {2 * rows * in * rank,
          moved(p.x, rows * in) + moved(p.a, rank * in) + written(p.u, rows * rank)};
}
template <class T>
Cost lora_up(const LoraUp<T>& p) {
  const double rows = double(p.rows), out = double(p.out), rank = double(p.rank);
  return {2 * rows * out * rank, moved(p.u, rows * rank) + moved(p.b, out * rank) +
                                     moved(p.scale, rank) + written(p.y, rows * out, true)};
}
template <class T>
Cost lora_up_backward(const LoraUpBackward<T>& p) {
  const double rows = double(p.rows), out = double(p.out), rank = double(p.rank);
  return {4 * rows * out * rank, moved(p.dy, rows * out) + moved(p.u, rows * rank) +
                                     moved(p.b, out * rank) + moved(p.scale, rank) +
                                     written(p.du, rows * rank) +
                                     written(p.db, out * rank, p.accumulate)};
}
template <class T>
Cost lora_down_backward(const LoraDownBackward<T>& p) {
  const double rows = double(p.rows), in = double(p.in), rank = double(p.rank);
  const double product = 2 * rows * in * rank;
  return {p.dx == nullptr ? product : 2 * product,
          moved(p.du, rows * rank) + moved(p.x, rows * in) +
              moved(p.a, p.dx == nullptr ? 0 : rank * in) + written(p.da, rank * in, p.accumulate) +
              written(p.dx, rows * in, true)};
}
template <class T>
Cost lora_merge(const LoraMerge<T>& p) {
  const double out = double(p.out), in = double(p.in), rank = double(p.rank);
  return {2 * out * in * rank, moved(p.w, out * in) + moved(p.a, rank * in) +
                                   moved(p.b, out * rank) + moved(p.scale, rank) +
                                   written(p.merged, out * in)};
}
template <class T>
Cost lora_scale(const LoraScale<T>& p) {
  const double n = double(p.out) * p.rank;
  return {n, moved(p.b, n) + moved(p.scale, p.rank) + written(p.v, n)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void lora_down(const LoraDown<T>& p, const Stream& stream);
template <class T, class Stream>
void lora_up(const LoraUp<T>& p, const Stream& stream);
template <class T, class Stream>
void lora_up_backward(const LoraUpBackward<T>& p, const Stream& stream);
template <class T, class Stream>
void lora_down_backward(const LoraDownBackward<T>& p, const Stream& stream);
template <class T, class Stream>
void lora_merge(const LoraMerge<T>& p, const Stream& stream);
template <class T, class Stream>
void lora_scale(const LoraScale<T>& p, const Stream& stream);

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
