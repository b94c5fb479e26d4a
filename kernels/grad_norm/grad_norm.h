// Global gradient norm over many tensors, for clipping (Pascanu et al., arXiv 1211.5063):
//   norm = sqrt(sum over all tensors of g^2),   clip factor = min(1, max_norm / (norm + 1e-6)).
// The 1e-6 is torch.nn.utils.clip_grad_norm_'s. Sums are in double, in fixed chunks.
// Instantiated for double and float. Chunks are cut by a tensor's size alone, so the norm is the
// same for any number of threads. Relative error: 2^-53 (chunk/16 + 64), a chunk being max(16384,
// size/64) elements. Per element: sizeof(T) bytes, 2 flops.
#pragma once
#include <cstdint>

namespace orthofed::cpu {

template <class T>
struct GradientSpan {
  const T* data = nullptr;
  int64_t size = 0;
};

// gradients [count] (count 0: norm 0). A NaN or infinity anywhere makes the norm NaN or infinite:
// the caller's check.
template <class T>
double grad_norm(const GradientSpan<T>* gradients, int64_t count);

}  // namespace orthofed::cpu
