// Matrix products:  C = op(A) op(B) [+ bias] [+ C].
//
// C [m, n] pitch ldc, apart from A and B in memory; op(A) [m, k], op(B) [k, n]; A is stored [m, k]
// (Op::none) or [k, m] (Op::transpose), B [k, n] or [n, k]. Sums are in Accum<T>. Any size, k = 0
// included (C = bias or 0).
//
// CPU: oneDNN for float, and for bf16 on a processor that multiplies bf16 natively. Everything
// else, and a build without oneDNN, takes the blocked loop in matmul_cpu.cc, which is also the
// readable reference: it widens bf16 as it copies blocks into cache (the products are then exact in
// fp32, so only the order of the sum differs from a native one). oneDNN was faster at every shape
// measured, skinny and small ones included, so no rule divides them by size.
//
// GPU: a ladder of versions (matmul_versions). bf16 takes tensor cores, float the vector units, at
// any shape and alignment; rows that are 16 bytes apart, or a multiple of that, are read fastest,
// and only those by Hopper's version.
//
// A tail (MatmulTail) adds a second, short product to the same sum: low-rank adapters at no further
// pass over C.
//
// Error: |C - exact| <= k eps/2 sum_p |A_ip B_pj| + eps(C)/2 |C|, eps of Accum<T> (Higham, Accuracy
// and Stability of Numerical Algorithms, section 3.1); with a tail k + rank for k, and the sum is
// over both products' terms. Same bits at every run; the blocked loop's also at every number of
// threads. 2 m n k flops; memory traffic from A and B once, to C once.
#pragma once
#include <array>
#include <cstdint>
#include <memory>

#include "kernels/core/cost.h"
#include "kernels/core/types.h"
#include "kernels/core/version.h"
#include "kernels/gelu/gelu.h"

namespace orthofed {

enum class Op { none, transpose };

struct MatmulShape {
  int64_t m = 0, n = 0, k = 0;
  int64_t lda = 0, ldb = 0, ldc = 0;
  Op op_a = Op::none, op_b = Op::none;
};

// C = op(A) op(B) [+ bias] [+ C], with T, C in {double, double}, {float, float}, {bf16, bf16},
// {bf16, float}. B is of another type where it is an adapter, which stays in fp32 beside bf16: its
// products are exact in fp32, as those of two bf16 are.
template <class T, class C, class B = T>
struct Matmul {
  const T* a;
  const B* b;
  C* c;
  const Accum<T>* bias = nullptr;  // [n]; null: none
  bool accumulate = false;         // add to what C holds (rounded once, after the sum)
  MatmulShape shape;
};

// Columns [begin, end) of C take ranks [first, last) of a tail.
struct MatmulTailPart {
  int64_t begin = 0, end = 0, first = 0, last = 0;
};

// U V in  C = AB + UV:  U [m, rank], finite; V [rank, n], stored as B is: [rank, n] (Op::none) or
// [n, rank] (Op::transpose). Both are of T: what they were rounded from is the caller's to answer
// for. On a GPU only bf16 takes a tail, on tensor cores.
template <class T>
struct MatmulTail {
  const T* u = nullptr;
  int64_t ldu = 0;
  const T* v = nullptr;
  int64_t ldv = 0;
  int64_t rank = 0;  // 0: no tail
  // Where V is zero outside of blocks, as for adapters of the q, k and v parts of C: the blocks,
  // such that a tile of C multiplies only what its columns need. None: all of V counts.
  std::array<MatmulTailPart, 3> parts = {};

  bool dense() const {
    for (const MatmulTailPart& p : parts)
      if (p.begin < p.end) return false;
    return true;
  }
};

// C = AB + UV [+ bias], rounded once; op_a is Op::none.
template <class T>
struct MatmulExtended {
  const T *a, *b;
  MatmulTail<T> tail;
  T* c;
  const Accum<T>* bias = nullptr;  // [n]; null: none
  MatmulShape shape;
};

// The products of a transformer's MLP and projections, with a tail or without, together with the
// elementwise step behind them, which saves the GPU a pass over memory (on the CPU they are two
// calls). op_a is Op::none; shape.ldc is the pitch of the last result; results are apart from all
// else in memory. On the GPU the step reads the sum before it is rounded to T. Error: that of the
// product, times |GELU'| <= 1.13 or |gamma|, and that of the step (gelu.h, residual.h).

// h = T(AB + UV + bias) and y = GELU(h).
template <class T>
struct MatmulGelu {
  const T *a, *b;
  MatmulTail<T> tail;
  const Accum<T>* bias = nullptr;  // [n]; null: none
  T* h;                            // [m, n] pitch ldh, which backward needs
  int64_t ldh;
  T* y;  // [m, n]
  GeluKind kind;
  MatmulShape shape;
};

// dx = (AB + UV) * GELU'(h): the gradient through the next layer's weights B and the GELU.
template <class T>
struct MatmulGeluBackward {
  const T *a, *b;
  MatmulTail<T> tail;
  const T* h;  // [m, n] pitch ldh
  int64_t ldh;
  T* dx;  // [m, n]
  GeluKind kind;
  MatmulShape shape;
};

// y = x + gamma * (AB + UV + bias), x and y in the residual stream.
template <class T>
struct MatmulResidual {
  const T *a, *b;
  MatmulTail<T> tail;
  const Accum<T>* bias = nullptr;   // [n]; null: none
  const Accum<T>* gamma = nullptr;  // [n]; null: 1
  const Accum<T>* x;                // [m, n] pitch ldx
  int64_t ldx;
  Accum<T>* y;  // [m, n]
  MatmulShape shape;
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T, class C>
void matmul(const Matmul<T, C>& p);
// The readable blocked loop, whatever is built in. Also an adapter as B.
template <class T, class C, class B>
void matmul_blocked(const Matmul<T, C, B>& p);
template <class T>
void matmul_extended(const MatmulExtended<T>& p);
template <class T>
void matmul_by_adapter(const Matmul<T, T, Accum<T>>& p);
template <class T>
void matmul_gelu(const MatmulGelu<T>& p);
template <class T>
void matmul_gelu_backward(const MatmulGeluBackward<T>& p);
template <class T>
void matmul_residual(const MatmulResidual<T>& p);

// A frozen B, rearranged once into the order that the product reads. It keeps its own copy; the
// source may be freed. Copying shares the packed storage.
template <class T>
class PackedMatrix {
 public:
  PackedMatrix() = default;
  // B [k, n] (Op::none) or [n, k] (Op::transpose), pitch ldb.
  PackedMatrix(const T* b, int64_t ldb, Op op_b, int64_t k, int64_t n);
  int64_t k() const { return k_; }
  int64_t n() const { return n_; }
  bool empty() const { return !impl_; }
  size_t bytes() const;  // what the packed copy occupies

  // C [m, n] = A [m, k] B [+ bias] [+ C].
  template <class C>
  void multiply(const T* a, int64_t lda, C* c, int64_t ldc, const Accum<T>* bias, bool accumulate,
                int64_t m) const;

  struct Impl;

 private:
  int64_t k_ = 0, n_ = 0;
  std::shared_ptr<const Impl> impl_;
};

const char* matmul_backend();  // "oneDNN 3.7.1" or "blocked loop", for doctor

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T, class C, class B>
Cost matmul(const Matmul<T, C, B>& p) {
  const MatmulShape& s = p.shape;
  return {2.0 * s.m * s.n * s.k, moved(p.a, double(s.m) * s.k) + moved(p.b, double(s.k) * s.n) +
                                     moved(p.bias, s.n) +
                                     written(p.c, double(s.m) * s.n, p.accumulate)};
}
// Of a tail: the blocks of V, or all of it.
template <class T>
Cost matmul_tail(const MatmulTail<T>& t, const MatmulShape& s) {
  double elements = t.dense() ? double(s.n) * t.rank : 0;
  for (const MatmulTailPart& p : t.parts) elements += double(p.end - p.begin) * (p.last - p.first);
  return {2.0 * s.m * elements, moved(t.u, double(s.m) * t.rank) + moved(t.v, elements)};
}
template <class T>
Cost matmul_extended(const MatmulExtended<T>& p) {
  return matmul(Matmul<T, T>{.a = p.a, .b = p.b, .c = p.c, .bias = p.bias, .shape = p.shape}) +
         matmul_tail(p.tail, p.shape);
}
// B is a PackedMatrix<T>.
template <class T, class C>
Cost packed_matmul(Matmul<T, C> p) {
  p.b = p.a;  // not null
  return matmul(p);
}
template <class T>
Cost matmul_by_adapter(const Matmul<T, T, Accum<T>>& p) {
  return matmul(p);
}
// The elementwise steps with the product's sum in registers: GELU's and the residual's flops, and
// the bytes of what they read and write besides.
template <class T>
Cost matmul_gelu(const MatmulGelu<T>& p) {
  return matmul_extended(MatmulExtended<T>{
             .a = p.a, .b = p.b, .tail = p.tail, .c = p.h, .bias = p.bias, .shape = p.shape}) +
         gelu_forward(GeluForward<T>{.x = nullptr,
                                     .ldx = 0,
                                     .y = p.y,
                                     .ldy = 0,
                                     .rows = p.shape.m,
                                     .cols = p.shape.n,
                                     .kind = p.kind});
}
template <class T>
Cost matmul_gelu_backward(const MatmulGeluBackward<T>& p) {
  return matmul_extended(MatmulExtended<T>{
             .a = p.a, .b = p.b, .tail = p.tail, .c = nullptr, .shape = p.shape}) +
         gelu_backward(GeluBackward<T>{.dy = nullptr,
                                       .lddy = 0,
                                       .x = p.h,
                                       .ldx = 0,
                                       .dx = p.dx,
                                       .lddx = 0,
                                       .rows = p.shape.m,
                                       .cols = p.shape.n,
                                       .kind = p.kind});
}
template <class T>
Cost matmul_residual(const MatmulResidual<T>& p) {
  const MatmulShape& s = p.shape;
  const double n = double(s.m) * s.n;
  return matmul(Matmul<T, Accum<T>>{.a = p.a, .b = p.b, .c = p.y, .bias = p.bias, .shape = s}) +
         matmul_tail(p.tail, s) + Cost{2 * n, moved(p.x, n) + moved(p.gamma, s.n)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

// T, C in {float, float}, {bf16, bf16}, {bf16, float}.
template <class T, class C, class Stream>
void matmul(const Matmul<T, C>& p, const Stream& stream);
// Every version of it, the naive one first.
template <class T, class C, class Stream>
Ladder<Matmul<T, C>, Stream> matmul_versions();

template <class T, class Stream>
void matmul_extended(const MatmulExtended<T>& p, const Stream& stream);
template <class T, class Stream>
void matmul_by_adapter(const Matmul<T, T, Accum<T>>& p, const Stream& stream);
template <class T, class Stream>
void matmul_gelu(const MatmulGelu<T>& p, const Stream& stream);
template <class T, class Stream>
void matmul_gelu_backward(const MatmulGeluBackward<T>& p, const Stream& stream);
template <class T, class Stream>
void matmul_residual(const MatmulResidual<T>& p, const Stream& stream);

}  // namespace orthofed::gpu
