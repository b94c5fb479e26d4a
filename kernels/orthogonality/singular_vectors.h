// The directions in which a matrix is largest: set-up for the penalty `base_subspace`, computed once
// for each frozen weight, on the host.
#pragma once
#include <cstdint>

namespace orthofed::cpu {

// v_k [k, in]: the top-k right singular vectors of w [out, in] pitch ldw, k <= min(out, in), as
// orthonormal rows in descending order, by block Krylov iteration in double from a fixed start until
// |W^T W v - s^2 v| <= 1e-10 s_1^2. It allocates. Throws Error where w is not finite. Same bits at
// every run and number of threads.
template <class T>
void top_right_singular_vectors(const T* w, int64_t ldw, int64_t out, int64_t in, int64_t k,
                                T* v_k);

}  // namespace orthofed::cpu
