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
// additive epsilon. Values and sums are double; adapters are T. Ranks and k up to 64: the Grams are
// on the stack (at most 400 KiB), nothing of size out x in is formed, nothing is allocated.
// Work in multiply-adds, R = r_g + r_p: R^2 (in + out); `base` 3 R in out; `features` 2 R^2 rows.
// Instantiated for double and float, `features` for bf16 too.
#pragma once
#include <cstdint>

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
};

}  // namespace orthofed

namespace orthofed::cpu {

// Each returns the layer's value and adds weight * gradient to the layer's gradient buffers
// (weight 0: value only).
template <class T>
double orthogonality_update(const OrthogonalityLayer<T>& layer, PenaltyForm form, double weight);
template <class T>
double orthogonality_base(const OrthogonalityLayer<T>& layer, PenaltyForm form, double weight);
template <class T>
double orthogonality_subspace(const OrthogonalityLayer<T>& layer, double weight);
template <class T>
double orthogonality_subspace_l1(const OrthogonalityLayer<T>& layer, double weight);
template <class T>
double orthogonality_base_subspace(const OrthogonalityLayer<T>& layer, double weight);

// |B A|_F^2 from the Grams.
template <class T>
double delta_norm2(const T* a, const T* b, int64_t in, int64_t out, int64_t rank);

// features: u_g [rows, rank_g], u_p [rows, rank_p] are A x of the layer's actual input, U their
// element type. Returns the mean over rows; adds weight * gradient to du_g, du_p (of the same
// shapes, in Accum<U>) and to db_g, db_p (null: not wanted).
template <class U>
double orthogonality_features(const U* u_g, int64_t ld_g, const U* u_p, int64_t ld_p,
                              const Accum<U>* b_g, const Accum<U>* b_p, int64_t rows, int64_t out,
                              int64_t rank_g, int64_t rank_p, PenaltyForm form, double weight,
                              Accum<U>* du_g, int64_t ldd_g, Accum<U>* du_p, int64_t ldd_p,
                              Accum<U>* db_g, Accum<U>* db_p);

// v_k [k, in]: the top-k right singular vectors of w [out, in], k <= min(out, in), as orthonormal
// rows in descending order, by block Krylov iteration in double from a fixed start until
// |W^T W v - s^2 v| <= 1e-10 s_1^2. Set-up, not a step: the only function here that allocates.
template <class T>
void top_right_singular_vectors(const T* w, int64_t ldw, int64_t out, int64_t in, int64_t k,
                                T* v_k);

}  // namespace orthofed::cpu
