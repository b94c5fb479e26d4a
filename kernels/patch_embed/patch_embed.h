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

namespace orthofed::cpu {

// z [batch * patches, dim] pitch ldz; own [prefix, dim] dense; pos [prefix + patches, dim] dense;
// x [batch * (prefix + patches), dim] pitch ldx.
template <class T>
void patch_embed_forward(const T* z, int64_t ldz, const Accum<T>* own, const Accum<T>* pos,
                         Accum<T>* x, int64_t ldx, int64_t batch, int64_t prefix, int64_t patches,
                         int64_t dim);

// dz (null: not needed) is written; down [prefix, dim] and dpos (null: frozen) are written, or
// added to if accumulate. Sums over the batch in ascending order.
template <class T>
void patch_embed_backward(const Accum<T>* dx, int64_t lddx, T* dz, int64_t lddz, Accum<T>* down,
                          Accum<T>* dpos, bool accumulate, int64_t batch, int64_t prefix,
                          int64_t patches, int64_t dim);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost patch_embed_forward(const T* z, int64_t, const Accum<T>* own, const Accum<T>* pos, Accum<T>* x,
                         int64_t, int64_t batch, int64_t prefix, int64_t patches, int64_t dim) {
  const double tokens = double(prefix + patches);
  return {batch * tokens * dim, moved(z, double(batch) * patches * dim) +
                                    moved(own, double(prefix) * dim) + moved(pos, tokens * dim) +
                                    written(x, batch * tokens * dim)};
}
template <class T>
Cost patch_embed_backward(const Accum<T>* dx, int64_t, T* dz, int64_t, Accum<T>* down,
                          Accum<T>* dpos, bool accumulate, int64_t batch, int64_t prefix,
                          int64_t patches, int64_t dim) {
  const double tokens = double(prefix + patches);
  return {batch * dim *
              (dpos != nullptr   ? tokens
               : down != nullptr ? double(prefix)
                                 : 0),
          moved(dx, batch * tokens * dim) + written(dz, double(batch) * patches * dim) +
              written(down, double(prefix) * dim, accumulate) +
              written(dpos, tokens * dim, accumulate)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void patch_embed_forward(const T* z, int64_t ldz, const Accum<T>* own, const Accum<T>* pos,
                         Accum<T>* x, int64_t ldx, int64_t batch, int64_t prefix, int64_t patches,
                         int64_t dim, const Stream& stream);

template <class T, class Stream>
void patch_embed_backward(const Accum<T>* dx, int64_t lddx, T* dz, int64_t lddz, Accum<T>* down,
                          Accum<T>* dpos, bool accumulate, int64_t batch, int64_t prefix,
                          int64_t patches, int64_t dim, const Stream& stream);

}  // namespace orthofed::gpu
