// Token assembly of a ViT (Dosovitskiy et al., arXiv 2010.11929, eq. 1). The patches have already
// been multiplied by the embedding matrix; this adds the class token and the positions:
//
//   x[b, 0]     = cls + pos[0]
//   x[b, 1 + p] = z[b, p] + pos[1 + p]
//
// Without a class token x[b, p] = z[b, p] + pos[p]. Instantiated for double, float, bf16.
//
// Error: forward is one rounding of the sum to Accum<T>; dz is dx rounded to T; dcls and dpos are
// sums over the batch, batch eps/2 sum_b |dx|. Same bits at every run and for any number of
// threads. Traffic: forward z and pos in, x out; backward dx in twice, dz out.
#pragma once
#include <cstdint>

#include "kernels/core/types.h"

namespace orthofed::cpu {

// z [batch * patches, dim] pitch ldz; cls [dim] or null; pos [patches + (cls != null), dim] dense;
// x [batch * tokens, dim] pitch ldx.
template <class T>
void patch_embed_forward(const T* z, int64_t ldz, const Accum<T>* cls, const Accum<T>* pos,
                         Accum<T>* x, int64_t ldx, int64_t batch, int64_t patches, int64_t dim);

// class_token: does row 0 of every image belong to one (with dcls null, it is frozen)? dz (null:
// not needed) is written; dcls and dpos (null: frozen) are written, or added to if accumulate. Sums
// over the batch in ascending order.
template <class T>
void patch_embed_backward(const Accum<T>* dx, int64_t lddx, T* dz, int64_t lddz, Accum<T>* dcls,
                          Accum<T>* dpos, bool accumulate, bool class_token, int64_t batch,
                          int64_t patches, int64_t dim);

}  // namespace orthofed::cpu

namespace orthofed::gpu {

template <class T, class Stream>
void patch_embed_forward(const T* z, int64_t ldz, const Accum<T>* cls, const Accum<T>* pos,
                         Accum<T>* x, int64_t ldx, int64_t batch, int64_t patches, int64_t dim,
                         const Stream& stream);

template <class T, class Stream>
void patch_embed_backward(const Accum<T>* dx, int64_t lddx, T* dz, int64_t lddz, Accum<T>* dcls,
                          Accum<T>* dpos, bool accumulate, bool class_token, int64_t batch,
                          int64_t patches, int64_t dim, const Stream& stream);

}  // namespace orthofed::gpu
