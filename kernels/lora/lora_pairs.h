// lora.h's functions where the CPU multiplies bf16 natively (cpu::native_bf16()): all products by
// pairs of bf16 (kernels/core/tile_bf16.h), activations read once.
//
// An adapter becomes hi + lo, hi = bf16(a), lo = bf16(a - hi), and its product one of twice the
// rank.
#pragma once
#include <cstdint>

#include "kernels/core/parallel.h"
#include "kernels/core/types.h"

namespace orthofed::cpu::pairs {

// Whether the functions below may be called: a rank's products have to fit on the stack.
inline constexpr int64_t max_rank = 128;
inline bool serve_lora(int64_t rank) {
  return native_bf16() && rank > 0 && rank <= max_rank;
}

void lora_down(const bf16* x, int64_t ldx, const float* a, int64_t lda, bf16* u, int64_t ldu,
               int64_t rows, int64_t in, int64_t rank);
void lora_up(const bf16* u, int64_t ldu, const float* b, int64_t ldb, const float* scale, bf16* y,
             int64_t ldy, int64_t rows, int64_t out, int64_t rank);
void lora_up_backward(const bf16* dy, int64_t lddy, const bf16* u, int64_t ldu, const float* b,
                      int64_t ldb, const float* scale, bf16* du, int64_t lddu, float* db,
                      int64_t lddb, bool accumulate, int64_t rows, int64_t out, int64_t rank);
void lora_down_backward(const bf16* du, int64_t lddu, const bf16* x, int64_t ldx, const float* a,
                        int64_t lda, float* da, int64_t ldda, bool accumulate, bf16* dx,
                        int64_t lddx, int64_t rows, int64_t in, int64_t rank);

}  // namespace orthofed::cpu::pairs
