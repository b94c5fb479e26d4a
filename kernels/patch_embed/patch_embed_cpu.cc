#include "kernels/core/check.h"
#include "kernels/core/parallel.h"
#include "kernels/patch_embed/patch_embed.h"

namespace orthofed::cpu {
namespace {

constexpr int64_t rows_per_chunk = 64;

}  // namespace

template <class T>
void patch_embed_forward(const T* z, int64_t ldz, const Accum<T>* own, const Accum<T>* pos,
                         Accum<T>* x, int64_t ldx, int64_t batch, int64_t prefix, int64_t patches,
                         int64_t dim) {
  OF_CHECK(ldz >= dim && ldx >= dim, "patch_embed: a pitch is smaller than its row");
  const int64_t tokens = prefix + patches;
  parallel_for(batch * tokens, rows_per_chunk, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / tokens, t = i % tokens;
      const Accum<T>* p = pos + t * dim;  // [dim]
      Accum<T>* to = x + i * ldx;         // [dim]
      if (t < prefix) {
        for (int64_t j = 0; j < dim; ++j) to[j] = own[t * dim + j] + p[j];
      } else {
        const T* from = z + (image * patches + t - prefix) * ldz;  // [dim]
        for (int64_t j = 0; j < dim; ++j) to[j] = Accum<T>(from[j]) + p[j];
      }
    }
  });
}

template <class T>
void patch_embed_backward(const Accum<T>* dx, int64_t lddx, T* dz, int64_t lddz, Accum<T>* down,
                          Accum<T>* dpos, bool accumulate, int64_t batch, int64_t prefix,
                          int64_t patches, int64_t dim) {
  OF_CHECK(lddx >= dim && (dz == nullptr || lddz >= dim),
           "patch_embed: a pitch is smaller than its row");
  const int64_t tokens = prefix + patches;
  if (dz != nullptr) {
    parallel_for(batch * patches, rows_per_chunk, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Accum<T>* from = dx + (i / patches * tokens + i % patches + prefix) * lddx;  // [dim]
        T* to = dz + i * lddz;                                                             // [dim]
        for (int64_t j = 0; j < dim; ++j) to[j] = T(from[j]);
      }
    });
  }
  // One task owns one token; dx[:, t] is summed down the batch.
  const auto sum_images = [&](int64_t t, Accum<T>* to) {
    if (!accumulate) {
      for (int64_t j = 0; j < dim; ++j) to[j] = 0;
    }
    for (int64_t image = 0; image < batch; ++image) {
      const Accum<T>* from = dx + (image * tokens + t) * lddx;  // [dim]
      for (int64_t j = 0; j < dim; ++j) to[j] += from[j];
    }
  };
  if (down != nullptr)
    for (int64_t t = 0; t < prefix; ++t) sum_images(t, down + t * dim);
  if (dpos != nullptr) {
    parallel_for(tokens, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) sum_images(t, dpos + t * dim);
    });
  }
}

template void patch_embed_forward<double>(const double*, int64_t, const double*, const double*,
                                          double*, int64_t, int64_t, int64_t, int64_t, int64_t);
template void patch_embed_forward<float>(const float*, int64_t, const float*, const float*, float*,
                                         int64_t, int64_t, int64_t, int64_t, int64_t);
template void patch_embed_forward<bf16>(const bf16*, int64_t, const float*, const float*, float*,
                                        int64_t, int64_t, int64_t, int64_t, int64_t);
template void patch_embed_backward<double>(const double*, int64_t, double*, int64_t, double*,
                                           double*, bool, int64_t, int64_t, int64_t, int64_t);
template void patch_embed_backward<float>(const float*, int64_t, float*, int64_t, float*, float*,
                                          bool, int64_t, int64_t, int64_t, int64_t);
template void patch_embed_backward<bf16>(const float*, int64_t, bf16*, int64_t, float*, float*,
                                         bool, int64_t, int64_t, int64_t, int64_t);

}  // namespace orthofed::cpu
