// lora.h's functions where the CPU multiplies bf16 natively (cpu::native_bf16()): all products by
// pairs of bf16 (kernels/core/tile_bf16.h), activations read once.
//
// An adapter becomes hi + lo, hi = bf16(a), lo = bf16(a - hi), and its product one of twice the rank.
#pragma once
#include <cstdint>

#include "kernels/core/parallel.h"
#include "kernels/core/types.h"
#include "kernels/lora/lora.h"

namespace orthofed::cpu::pairs {

// Whether the functions below may be called: a rank's products have to fit on the stack.
inline constexpr int64_t kMaxRank = 128;
inline bool serve_lora(int64_t rank) {
  return native_bf16() && rank > 0 && rank <= kMaxRank;
}

void lora_down(const LoraDown<bf16>& p);
void lora_up(const LoraUp<bf16>& p);
void lora_up_backward(const LoraUpBackward<bf16>& p);
void lora_down_backward(const LoraDownBackward<bf16>& p);

}  // namespace orthofed::cpu::pairs
