// Token assembly of a ViT (Dosovitskiy et al., arXiv 2010.11929, eq. 1). The patches have already
// been multiplied by the embedding matrix; this puts the model's own tokens before them (class
// token, distillation token, registers: `prefix` of them, or none) and adds the positions:
//
//   x[b, i]          = own[i] + pos[i]
//   x[b, prefix + p] = z[b, p] + pos[prefix + p]
//
// Instantiated for double, float, bf16.
//
// Error: forward is one rounding of the sum to Accum<T>; dz is dx rounded to T; down and dpos are
// sums over the batch, batch eps/2 sum_b |dx|. Same bits at every run and for any number of
// threads. Traffic: forward z and pos in, x out; backward dx in twice, dz out.
#pragma once
#include <cstdint>

#include "kernels/core/cost.h"
#include "kernels/core/types.h"

namespace orthofed {

template <class T>
struct PatchEmbedForward {
  const T* z;  // [batch * patches, dim] pitch ldz
  int64_t ldz;
  const Accum<T>* own;  // [prefix, dim] dense
  const Accum<T>* pos;  // [prefix + patches, dim] dense
  Accum<T>* x;          // [batch * (prefix + patches), dim] pitch ldx
  int64_t ldx;
  int64_t batch, prefix, patches, dim;
};

// dz is written; down and dpos are sums over the batch in ascending order.
template <class T>
struct PatchEmbedBackward {
  const Accum<T>* dx;  // [batch * (prefix + patches), dim] pitch lddx
  int64_t lddx;
  T* dz = nullptr;  // [batch * patches, dim] pitch lddz; null: not wanted
  int64_t lddz = 0;
  Accum<T>* down = nullptr;  // [prefix, dim] dense, the gradient of own; null: frozen
  Accum<T>* dpos = nullptr;  // [prefix + patches, dim] dense; null: frozen
  bool accumulate = false;   // add to what is in down and dpos
  int64_t batch, prefix, patches, dim;
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void patch_embed_forward(const PatchEmbedForward<T>& a);
template <class T>
void patch_embed_backward(const PatchEmbedBackward<T>& a);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost patch_embed_forward(const PatchEmbedForward<T>& a) {
  const double tokens = double(a.prefix + a.patches), n = a.batch * tokens * a.dim;
  return {n, moved(a.z, double(a.batch) * a.patches * a.dim) +
                 moved(a.own, double(a.prefix) * a.dim) + moved(a.pos, tokens * a.dim) +
                 written(a.x, n)};
}
template <class T>
Cost patch_embed_backward(const PatchEmbedBackward<T>& a) {
  const double tokens = double(a.prefix + a.patches);
  return {a.batch * a.dim *
              (a.dpos != nullptr   ? tokens
               : a.down != nullptr ? double(a.prefix)
                                   : 0),
          moved(a.dx, a.batch * tokens * a.dim) +
              written(a.dz, double(a.batch) * a.patches * a.dim) +
              written(a.down, double(a.prefix) * a.dim, a.accumulate) +
              written(a.dpos, tokens * a.dim, a.accumulate)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void patch_embed_forward(const PatchEmbedForward<T>& a, const Stream& stream);
template <class T, class Stream>
void patch_embed_backward(const PatchEmbedBackward<T>& a, const Stream& stream);

}  // namespace orthofed::gpu
