// attention.h's functions where the CPU multiplies bf16 natively (cpu::native_bf16()): all products
// by pairs of bf16 (kernels/core/tile_bf16.h), twice as fast as float's.
//
// The factors P and dS of the second products are rounded to bf16, as a GPU's tensor cores read
// them. Subnormals count as 0.
#pragma once
#include "kernels/attention/attention.h"

namespace orthofed::cpu::pairs {

// Only where native_bf16().
void attention_forward(const AttentionForward<bf16>& a);
void attention_backward(const AttentionBackward<bf16>& a);

}  // namespace orthofed::cpu::pairs
