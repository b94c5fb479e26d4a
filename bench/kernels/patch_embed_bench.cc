// Token assembly: class token before the embedded patches, positions added.
#include "kernels/patch_embed/patch_embed.h"

#include "bench/support/bench.h"

namespace orthofed::bench {
namespace {

template <class T>
void forward(Bench& b, const Vit& v) {
  using A = Accum<T>;
  const int64_t n = v.dim, prefix = 1, patches = v.tokens - prefix;
  Array<T> z(b, v.batch * patches * n);
  Array<A> own(b, prefix * n), pos(b, v.tokens * n), x(b, v.rows() * n, Fill::nan);
  b.shape({{"batch", v.batch}, {"tokens", v.tokens}, {"dim", n}});
  OF_TIME(b, patch_embed_forward, [&] {
    return PatchEmbedForward<T>{.z = z.data(),
                                .ldz = n,
                                .own = own.data(),
                                .pos = pos.data(),
                                .x = x.data(),
                                .ldx = n,
                                .batch = v.batch,
                                .prefix = prefix,
                                .patches = patches,
                                .dim = n};
  });
  b.memcpy_peer();
  b.expect(x, x.size(), [&](int64_t i) -> Expected {
    const int64_t image = i / n / v.tokens, token = i / n % v.tokens, j = i % n;
    const double part =
        token < prefix ? own[token * n + j] : z[(image * patches + token - prefix) * n + j];
    return {part + pos[token * n + j], 2 * epsilon<A>};
  });
  b.measure();
}

template <class T>
void backward(Bench& b, const Vit& v) {
  using A = Accum<T>;
  const int64_t n = v.dim, prefix = 1, patches = v.tokens - prefix;
  Array<A> dx(b, v.rows() * n), down(b, prefix * n, Fill::nan), dpos(b, v.tokens * n, Fill::nan);
  Array<T> dz(b, v.batch * patches * n, Fill::nan);
  b.shape({{"batch", v.batch}, {"tokens", v.tokens}, {"dim", n}});
  OF_TIME(b, patch_embed_backward, [&] {
    return PatchEmbedBackward<T>{.dx = dx.data(),
                                 .lddx = n,
                                 .dz = dz.data(),
                                 .lddz = n,
                                 .down = down.data(),
                                 .dpos = dpos.data(),
                                 .batch = v.batch,
                                 .prefix = prefix,
                                 .patches = patches,
                                 .dim = n};
  });
  b.memcpy_peer();
  b.expect(dz, dz.size(), [&](int64_t i) -> Expected {
    const int64_t image = i / n / patches, patch = i / n % patches;
    const double want = dx[(image * v.tokens + prefix + patch) * n + i % n];
    return {want, epsilon<T> * std::abs(want)};
  });
  b.expect(dpos, dpos.size(), [&](int64_t i) -> Expected {
    double sum = 0;
    for (int64_t image = 0; image < v.batch; ++image) sum += dx[image * v.tokens * n + i];
    return {sum, epsilon<A> * double(v.batch * v.batch)};
  });
  b.measure();
}

const bool registered = on_every_vit("patch_embed/forward", forward<float>, forward<bf16>) &&
                        on_every_vit("patch_embed/backward", backward<float>, backward<bf16>);

}  // namespace
}  // namespace orthofed::bench
