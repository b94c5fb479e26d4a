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
// additive epsilon. Ranks and k from 1 to 64; nothing of size out x in is formed, nothing is
// allocated. Work in multiply-adds, R = r_g + r_p: R^2 (in + out), `base` 3 R in out and
// `base_subspace` 2 R k in more; `subspace` and `subspace_l1` R^2 in; `features` 2 R^2 rows.
// Instantiated for double and float, `features` for bf16 too.
//
// Values, sums and small matrices are double on every device, adapters and gradients T. Error: a
// sum of n terms errs by at most n 2^-53 sum |terms|, which leaves values 11 digits unless their
// terms cancel; a gradient errs by 2 eps(T) (|gradient| + its largest element), because it may be
// added in two products, each rounded to T. Same bits at every run and, on a CPU, at every number
// of threads.
//
// All functions but top_right_singular_vectors exist on every device; arrays and the numbers that
// pointers give live in that device's memory. All layers of a model are one call, on a GPU one
// launch (`base` two, `features` four for its one layer). Its fp64 units bound them; GPUs without
// many (compute capability 8.6, 8.9, 12) take tens of times longer.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/core/cost.h"
#include "kernels/core/types.h"

namespace orthofed {

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

  template <class F>
  void each_pointer(const F& f) {
    f(a_g), f(b_g), f(a_p), f(b_p), f(da_g), f(db_g), f(da_p), f(db_p), f(w0), f(v_k);
  }
};

}  // namespace orthofed

namespace orthofed::cpu {

// Each writes the values of layers[0..count-1] to values [count] and adds *weight * gradient to the
// layers' gradient buffers (*weight 0: values only). Layers must not share gradient buffers. Ranks
// out of range: Error on a CPU, a trap on a GPU.
template <class T>
void orthogonality_update(const OrthogonalityLayer<T>* layers, int64_t count, PenaltyForm form,
                          const double* weight, double* values);
template <class T>
void orthogonality_base(const OrthogonalityLayer<T>* layers, int64_t count, PenaltyForm form,
                        const double* weight, double* values);
template <class T>
void orthogonality_subspace(const OrthogonalityLayer<T>* layers, int64_t count,
                            const double* weight, double* values);
template <class T>
void orthogonality_subspace_l1(const OrthogonalityLayer<T>* layers, int64_t count,
                               const double* weight, double* values);
template <class T>
void orthogonality_base_subspace(const OrthogonalityLayer<T>* layers, int64_t count,
                                 const double* weight, double* values);

// norms2 [count, 2] = |B A|_F^2 of each layer's general and personal adapter, from the Grams.
template <class T>
void delta_norm2(const OrthogonalityLayer<T>* layers, int64_t count, double* norms2);

// features: u_g [rows, rank_g], u_p [rows, rank_p] are A x of the layer's actual input, U their
// element type. *value = the mean over rows; adds *weight * gradient to du_g, du_p (of the same
// shapes, in Accum<U>) and to db_g, db_p (null: not wanted).
template <class U>
void orthogonality_features(const U* u_g, int64_t ld_g, const U* u_p, int64_t ld_p,
                            const Accum<U>* b_g, const Accum<U>* b_p, int64_t rows, int64_t out,
                            int64_t rank_g, int64_t rank_p, PenaltyForm form, const double* weight,
                            Accum<U>* du_g, int64_t ldd_g, Accum<U>* du_p, int64_t ldd_p,
                            Accum<U>* db_g, Accum<U>* db_p, double* value);

// v_k [k, in]: the top-k right singular vectors of w [out, in], k <= min(out, in), as orthonormal
// rows in descending order, by block Krylov iteration in double from a fixed start until
// |W^T W v - s^2 v| <= 1e-10 s_1^2. Set-up, not a step: the only function here that allocates.
template <class T>
void top_right_singular_vectors(const T* w, int64_t ldw, int64_t out, int64_t in, int64_t k,
                                T* v_k);

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
Cost orthogonality_update(const OrthogonalityLayer<T>* layers, int64_t count, PenaltyForm,
                          const double* weight, double* values) {
  Cost c{0, moved(weight, 1) + written(values, count)};
  for (int64_t k = 0; k < count; ++k) c += adapters(layers[k]);
  return c;
}
template <class T>
Cost orthogonality_base(const OrthogonalityLayer<T>* layers, int64_t count, PenaltyForm form,
                        const double* weight, double* values) {
  Cost c = orthogonality_update<T>(layers, count, form, weight, values);
  for (const OrthogonalityLayer<T>* l = layers; l != layers + count; ++l)
    c += {6.0 * (l->rank_g + l->rank_p) * l->in * l->out, moved(l->w0, double(l->in) * l->out)};
  return c;
}
template <class T>
Cost orthogonality_subspace(const OrthogonalityLayer<T>* layers, int64_t count,
                            const double* weight, double* values) {
  Cost c{0, moved(weight, 1) + written(values, count)};
  for (int64_t k = 0; k < count; ++k) c += adapters(layers[k], false);
  return c;
}
template <class T>
Cost orthogonality_subspace_l1(const OrthogonalityLayer<T>* layers, int64_t count,
                               const double* weight, double* values) {
  return orthogonality_subspace<T>(layers, count, weight, values);
}
template <class T>
Cost orthogonality_base_subspace(const OrthogonalityLayer<T>* layers, int64_t count,
                                 const double* weight, double* values) {
  Cost c = orthogonality_update<T>(layers, count, PenaltyForm::cosine2, weight, values);
  for (const OrthogonalityLayer<T>* l = layers; l != layers + count; ++l)
    c += {4.0 * (l->rank_g + l->rank_p) * l->k * l->in, moved(l->v_k, double(l->k) * l->in)};
  return c;
}
// The Grams of each adapter by itself; gradients are not touched.
template <class T>
Cost delta_norm2(const OrthogonalityLayer<T>* layers, int64_t count, double* norms2) {
  Cost c{0, written(norms2, 2.0 * count)};
  for (const OrthogonalityLayer<T>* l = layers; l != layers + count; ++l) {
    const double squares = double(l->rank_g * l->rank_g + l->rank_p * l->rank_p);
    c += {2 * squares * (l->in + l->out),
          moved(l->a_g, double(l->rank_g) * l->in) + moved(l->b_g, double(l->rank_g) * l->out) +
              moved(l->a_p, double(l->rank_p) * l->in) + moved(l->b_p, double(l->rank_p) * l->out)};
  }
  return c;
}
template <class U>
Cost orthogonality_features(const U* u_g, int64_t, const U* u_p, int64_t, const Accum<U>* b_g,
                            const Accum<U>* b_p, int64_t rows, int64_t out, int64_t rank_g,
                            int64_t rank_p, PenaltyForm, const double* weight, Accum<U>* du_g,
                            int64_t, Accum<U>* du_p, int64_t, Accum<U>* db_g, Accum<U>* db_p,
                            double* value) {
  const double rank = double(rank_g + rank_p), tokens = double(rows), outputs = double(out);
  return {4 * rank * rank * tokens,
          moved(u_g, tokens * rank_g) + moved(u_p, tokens * rank_p) + moved(b_g, outputs * rank_g) +
              moved(b_p, outputs * rank_p) + moved(weight, 1) +
              written(du_g, tokens * rank_g, true) + written(du_p, tokens * rank_p, true) +
              written(db_g, outputs * rank_g, true) + written(db_p, outputs * rank_p, true) +
              written(value, 1)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void orthogonality_update(const OrthogonalityLayer<T>* layers, int64_t count, PenaltyForm form,
                          const double* weight, double* values, const Stream& stream);
template <class T, class Stream>
void orthogonality_base(const OrthogonalityLayer<T>* layers, int64_t count, PenaltyForm form,
                        const double* weight, double* values, const Stream& stream);
template <class T, class Stream>
void orthogonality_subspace(const OrthogonalityLayer<T>* layers, int64_t count,
                            const double* weight, double* values, const Stream& stream);
template <class T, class Stream>
void orthogonality_subspace_l1(const OrthogonalityLayer<T>* layers, int64_t count,
                               const double* weight, double* values, const Stream& stream);
template <class T, class Stream>
void orthogonality_base_subspace(const OrthogonalityLayer<T>* layers, int64_t count,
                                 const double* weight, double* values, const Stream& stream);

template <class T, class Stream>
void delta_norm2(const OrthogonalityLayer<T>* layers, int64_t count, double* norms2,
                 const Stream& stream);

template <class U, class Stream>
void orthogonality_features(const U* u_g, int64_t ld_g, const U* u_p, int64_t ld_p,
                            const Accum<U>* b_g, const Accum<U>* b_p, int64_t rows, int64_t out,
                            int64_t rank_g, int64_t rank_p, PenaltyForm form, const double* weight,
                            Accum<U>* du_g, int64_t ldd_g, Accum<U>* du_p, int64_t ldd_p,
                            Accum<U>* db_g, Accum<U>* db_p, double* value, const Stream& stream);

// Scratch memory in bytes; the other penalties need none.

// `base`: each layer's W0 is divided among so many blocks, which each leave two sums.
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
