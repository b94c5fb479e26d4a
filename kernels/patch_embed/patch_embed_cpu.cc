#include "kernels/core/check.h"
#include "kernels/core/parallel.h"
#include "kernels/patch_embed/patch_embed.h"

namespace orthofed::cpu {
namespace {

constexpr int64_t rows_per_chunk = 64;

}  // namespace

template <class T>
void patch_embed_forward(const PatchEmbedForward<T>& a) {
  OF_CHECK(a.ldz >= a.dim && a.ldx >= a.dim, "patch_embed: a pitch is smaller than its row");
  const int64_t tokens = a.prefix + a.patches;
  parallel_for(a.batch * tokens, rows_per_chunk, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / tokens, t = i % tokens;
      const Accum<T>* p = a.pos + t * a.dim;  // [dim]
      Accum<T>* to = a.x + i * a.ldx;         // [dim]
      if (t < a.prefix) {
        for (int64_t j = 0; j < a.dim; ++j) to[j] = a.own[t * a.dim + j] + p[j];
      } else {
        const T* from = a.z + (image * a.patches + t - a.prefix) * a.ldz;  // [dim]
        for (int64_t j = 0; j < a.dim; ++j) to[j] = Accum<T>(from[j]) + p[j];
      }
    }
  });
}

template <class T>
void patch_embed_backward(const PatchEmbedBackward<T>& a) {
  OF_CHECK(a.lddx >= a.dim && (a.dz == nullptr || a.lddz >= a.dim),
           "patch_embed: a pitch is smaller than its row");
  const int64_t tokens = a.prefix + a.patches;
  if (a.dz != nullptr) {
    parallel_for(a.batch * a.patches, rows_per_chunk, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Accum<T>* from =
            a.dx + (i / a.patches * tokens + i % a.patches + a.prefix) * a.lddx;  // [dim]
        T* to = a.dz + i * a.lddz;                                                // [dim]
        for (int64_t j = 0; j < a.dim; ++j) to[j] = T(from[j]);
      }
    });
  }
  // One task owns one token; dx[:, t] is summed down the batch.
  const auto sum_images = [&](int64_t t, Accum<T>* to) {
    if (!a.accumulate) {
      for (int64_t j = 0; j < a.dim; ++j) to[j] = 0;
    }
    for (int64_t image = 0; image < a.batch; ++image) {
      const Accum<T>* from = a.dx + (image * tokens + t) * a.lddx;  // [dim]
      for (int64_t j = 0; j < a.dim; ++j) to[j] += from[j];
    }
  };
  if (a.down != nullptr)
    for (int64_t t = 0; t < a.prefix; ++t) sum_images(t, a.down + t * a.dim);
  if (a.dpos != nullptr) {
    parallel_for(tokens, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) sum_images(t, a.dpos + t * a.dim);
    });
  }
}

#define OF_INSTANTIATE(T)                                         \
  template void patch_embed_forward(const PatchEmbedForward<T>&); \
  template void patch_embed_backward(const PatchEmbedBackward<T>&);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
