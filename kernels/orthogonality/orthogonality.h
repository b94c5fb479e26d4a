// The five orthogonality penalties between a general adapter (g), a personal one (p) and the frozen
// weight W0, with closed-form gradients (docs/method.md has the formulas and their sources).
//
// With DeltaW = B A and c(X, Y) = <X, Y>_F^2 / (|X|_F^2 |Y|_F^2):
//   base           [c(W0, DeltaW_g) + c(W0, DeltaW_p)] / 2
//   update         c(DeltaW_g, DeltaW_p)                            r x r Grams only
//   subspace       |Ahat_g Ahat_p^T|_F^2 / min(r_g, r_p)            rows normalised
//   subspace_l1    sum |Ahat_g Ahat_p^T| / (r_g r_p)                as O-LoRA
//   features       mean over tokens of cos^2(h_g, h_p), h = B A x   from u = A x
//   base_subspace  mean over adapters of |DeltaW V_k|_F^2 / |DeltaW|_F^2
//
// form: c above is cosine2; abs_cosine is its root |<X, Y>| / (|X| |Y|); raw2 is <X, Y>^2 (update
// and base only). `subspace` sums cosine2, `subspace_l1` abs_cosine, over pairs of rows.
// A term whose denominator is <= 1e-30 has value 0 and gradient 0 (raw2 has no denominator). No
// additive epsilon. Ranks and k from 1 to kMaxPenaltyRank; nothing of size out x in is formed,
// nothing is allocated. Work in multiply-adds, R = r_g + r_p: R^2 (in + out), `base` 3 R in out and
// `base_subspace` 2 R k in more; `subspace` and `subspace_l1` R^2 in; `features` 2 R^2 rows.
// Instantiated for double and float, `features` for bf16 too.
//
// Values, sums and small matrices are double on every device, adapters and gradients T. Error: a
// sum of n terms errs by at most n 2^-53 sum |terms|, which leaves values 11 digits unless their
// terms cancel; a gradient errs by 2 eps(T) (|gradient| + its largest element), because it may be
// added in two products, each rounded to T. Same bits at every run and, on a CPU, at every number
// of threads.
//
// Arrays, and the numbers that pointers give, live in the device's memory. All layers of a model are
// one call, on a GPU one launch (`base` two, `features` four for its one layer). Its fp64 units bound
// them; GPUs without many (compute capability 8.6, 8.9, 12) take tens of times longer.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/core/cost.h"
#include "kernels/core/types.h"

namespace orthofed {

inline constexpr int64_t kMaxPenaltyRank = 64;  // of each adapter, and of `base_subspace`'s k

enum class PenaltyForm { cosine2, abs_cosine, raw2 };

// One layer's tensors. Everything is dense row-major; gradients are ADDED to da_g .. db_p.
template <class T>
struct OrthogonalityLayer {
  int64_t in = 0, out = 0, rank_g = 0, rank_p = 0;
  const T *a_g = nullptr, *b_g = nullptr;  // A [rank, in], B [out, rank]
  const T *a_p = nullptr, *b_p = nullptr;
  T *da_g = nullptr, *db_g = nullptr, *da_p = nullptr, *db_p = nullptr;  // null: not wanted
  const T* w0 = nullptr;  // [out, in] pitch ld_w0, for `base`
  int64_t ld_w0 = 0;
  double w0_norm2 = 0;     // |W0|_F^2, computed once
  const T* v_k = nullptr;  // [k, in]: rows are the top right singular vectors, for `base_subspace`
  int64_t k = 0;
};

// `update`, `base`, `subspace`, `subspace_l1` and `base_subspace` of layers[0..count-1]. Each layer's
// value is written, and *weight * gradient is added to its gradient buffers (*weight 0: values only).
// Layers must not share gradient buffers. Ranks out of range: Error on a CPU, a trap on a GPU.
// Scratch on a GPU: `base` needs orthogonality_base_scratch(count) bytes.
template <class T>
struct OrthogonalityPenalty {
  const OrthogonalityLayer<T>* layers;  // [count]
  int64_t count;
  PenaltyForm form = PenaltyForm::cosine2;  // of `update` and `base`; the others have one
  const double* weight;
  double* values;  // [count]
};

// |B A|_F^2 of each layer's general and personal adapter, from the Grams.
template <class T>
struct DeltaNorm2 {
  const OrthogonalityLayer<T>* layers;  // [count]
  int64_t count;
  double* norms2;  // [count, 2]
};

// `features` of one layer, where u = A x is of the layer's actual input. The value is the mean over
// rows; *weight * gradient is added to du and db. Not with raw2.
// Scratch on a GPU: orthogonality_features_scratch(rows, rank_g, rank_p) bytes.
template <class U>
struct OrthogonalityFeatures {
  const U* u_g;  // [rows, rank_g] pitch ld_g
  int64_t ld_g;
  const U* u_p;  // [rows, rank_p] pitch ld_p
  int64_t ld_p;
  const Accum<U>*b_g, *b_p;  // [out, rank_g], [out, rank_p]
  int64_t rows, out, rank_g, rank_p;
  PenaltyForm form;
  const double* weight;
  Accum<U>* du_g = nullptr;  // [rows, rank_g] pitch ldd_g; null: not wanted
  int64_t ldd_g = 0;
  Accum<U>* du_p = nullptr;  // [rows, rank_p] pitch ldd_p; null: not wanted
  int64_t ldd_p = 0;
  Accum<U>*db_g = nullptr, *db_p = nullptr;  // [out, rank_g], [out, rank_p]; null: not wanted
  double* value;
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void orthogonality_update(const OrthogonalityPenalty<T>& a);
template <class T>
void orthogonality_base(const OrthogonalityPenalty<T>& a);
template <class T>
void orthogonality_subspace(const OrthogonalityPenalty<T>& a);
template <class T>
void orthogonality_subspace_l1(const OrthogonalityPenalty<T>& a);
template <class T>
void orthogonality_base_subspace(const OrthogonalityPenalty<T>& a);
template <class T>
void delta_norm2(const DeltaNorm2<T>& a);
template <class U>
void orthogonality_features(const OrthogonalityFeatures<U>& a);

}  // namespace orthofed::cpu

namespace orthofed::cost {

// R^2 (in + out) multiply-adds of the Grams and gradients, of the A's alone where a penalty reads
// nothing else; each adapter is read, and its gradient, which is added to, read and written.
template <class T>
Cost adapters(const OrthogonalityLayer<T>& l, bool with_b = true) {
  const double rank = double(l.rank_g + l.rank_p);
  Cost c{2 * rank * rank * l.in, 0};
  c.bytes = moved(l.a_g, double(l.rank_g) * l.in) + moved(l.a_p, double(l.rank_p) * l.in) +
            written(l.da_g, double(l.rank_g) * l.in, true) +
            written(l.da_p, double(l.rank_p) * l.in, true);
  if (with_b)
    c += {2 * rank * rank * l.out, moved(l.b_g, double(l.rank_g) * l.out) +
                                       moved(l.b_p, double(l.rank_p) * l.out) +
                                       written(l.db_g, double(l.rank_g) * l.out, true) +
                                       written(l.db_p, double(l.rank_p) * l.out, true)};
  return c;
}

template <class T>
Cost orthogonality_update(const OrthogonalityPenalty<T>& a) {
  Cost c{0, moved(a.weight, 1) + written(a.values, a.count)};
  for (int64_t k = 0; k < a.count; ++k) c += adapters(a.layers[k]);
  return c;
}
template <class T>
Cost orthogonality_base(const OrthogonalityPenalty<T>& a) {
  Cost c = orthogonality_update(a);
  for (const OrthogonalityLayer<T>* l = a.layers; l != a.layers + a.count; ++l)
    c += {6.0 * (l->rank_g + l->rank_p) * l->in * l->out, moved(l->w0, double(l->in) * l->out)};
  return c;
}
template <class T>
Cost orthogonality_subspace(const OrthogonalityPenalty<T>& a) {
  Cost c{0, moved(a.weight, 1) + written(a.values, a.count)};
  for (int64_t k = 0; k < a.count; ++k) c += adapters(a.layers[k], false);
  return c;
}
template <class T>
Cost orthogonality_subspace_l1(const OrthogonalityPenalty<T>& a) {
  return orthogonality_subspace(a);
}
template <class T>
Cost orthogonality_base_subspace(const OrthogonalityPenalty<T>& a) {
  Cost c = orthogonality_update(a);
  for (const OrthogonalityLayer<T>* l = a.layers; l != a.layers + a.count; ++l)
    c += {4.0 * (l->rank_g + l->rank_p) * l->k * l->in, moved(l->v_k, double(l->k) * l->in)};
  return c;
}
// The Grams of each adapter by itself; gradients are not touched.
template <class T>
Cost delta_norm2(const DeltaNorm2<T>& a) {
  Cost c{0, written(a.norms2, 2.0 * a.count)};
  for (const OrthogonalityLayer<T>* l = a.layers; l != a.layers + a.count; ++l) {
    const double squares = double(l->rank_g * l->rank_g + l->rank_p * l->rank_p);
    c += {2 * squares * (l->in + l->out),
          moved(l->a_g, double(l->rank_g) * l->in) + moved(l->b_g, double(l->rank_g) * l->out) +
              moved(l->a_p, double(l->rank_p) * l->in) + moved(l->b_p, double(l->rank_p) * l->out)};
  }
  return c;
}
template <class U>
Cost orthogonality_features(const OrthogonalityFeatures<U>& a) {
  const double rank = double(a.rank_g + a.rank_p), tokens = double(a.rows), outputs = double(a.out);
  return {4 * rank * rank * tokens,
          moved(a.u_g, tokens * a.rank_g) + moved(a.u_p, tokens * a.rank_p) +
              moved(a.b_g, outputs * a.rank_g) + moved(a.b_p, outputs * a.rank_p) +
              moved(a.weight, 1) + written(a.du_g, tokens * a.rank_g, true) +
              written(a.du_p, tokens * a.rank_p, true) + written(a.db_g, outputs * a.rank_g, true) +
              written(a.db_p, outputs * a.rank_p, true) + written(a.value, 1)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void orthogonality_update(const OrthogonalityPenalty<T>& a, const Stream& stream);
template <class T, class Stream>
void orthogonality_base(const OrthogonalityPenalty<T>& a, const Stream& stream);
template <class T, class Stream>
void orthogonality_subspace(const OrthogonalityPenalty<T>& a, const Stream& stream);
template <class T, class Stream>
void orthogonality_subspace_l1(const OrthogonalityPenalty<T>& a, const Stream& stream);
template <class T, class Stream>
void orthogonality_base_subspace(const OrthogonalityPenalty<T>& a, const Stream& stream);
template <class T, class Stream>
void delta_norm2(const DeltaNorm2<T>& a, const Stream& stream);
template <class U, class Stream>
void orthogonality_features(const OrthogonalityFeatures<U>& a, const Stream& stream);

// Scratch memory in bytes. `base`: each layer's W0 is divided among so many blocks, which each leave
// two sums.
inline constexpr int64_t kBaseStrips = 16;
inline size_t orthogonality_base_scratch(int64_t count) {
  return size_t(count * kBaseStrips * 2) * sizeof(double);
}

// `features`: tokens of one block, for about the 132 multiprocessors of an H100; three Grams of the
// B's, as large sums over tokens and a value from each block, and their totals.
inline int64_t features_block_rows(int64_t rows) {
  return std::max<int64_t>(64, (rows + 132 * 64 - 1) / (132 * 64) * 64);
}
inline size_t orthogonality_features_scratch(int64_t rows, int64_t rank_g, int64_t rank_p) {
  const int64_t block = features_block_rows(rows), blocks = (rows + block - 1) / block;
  const int64_t entries = rank_g * rank_g + rank_g * rank_p + rank_p * rank_p;
  return size_t(entries + (blocks + 1) * (entries + 1)) * sizeof(double);
}

}  // namespace orthofed::gpu
