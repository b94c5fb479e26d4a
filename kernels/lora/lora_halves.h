// lora.h's products where the CPU multiplies bf16 natively (cpu::native_bf16()), through oneDNN.
//
// All operands have to be bf16. Activations are; an adapter becomes hi + lo, hi = bf16(a),
// lo = bf16(a - hi), side by side, so that one product of twice the rank does both:
// x [hi; lo]^T are two halves to add, [u u] [hi lo]^T adds them itself.
#pragma once
#include <cstdint>
#include <type_traits>

#include "kernels/core/types.h"
#include "kernels/matmul/matmul_onednn.h"

namespace orthofed::cpu::halves {

// Of T, as far as the build can tell; where false, nothing below is defined.
template <class T>
inline constexpr bool built_in = std::is_same_v<T, bf16>&& onednn::built_in;

bool serve();  // whether they may be called

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

}  // namespace orthofed::cpu::halves
