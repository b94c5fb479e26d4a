#include "kernels/patch_embed/patch_embed.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/core/check.h"
#include "tests/support/buffer.h"
#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/gradcheck.h"
#include "tests/support/random.h"

namespace orthofed {
namespace {

using namespace orthofed::test;

struct Case {
  int64_t batch, patches, dim, prefix;
  int64_t padding;
};
const std::vector<Case> cases = {{1, 1, 1, 1, 0},   {2, 4, 3, 1, 1},    {3, 63, 17, 1, 0},
                                 {2, 64, 96, 0, 3}, {1, 196, 33, 1, 5}, {5, 13, 8, 0, 0},
                                 {0, 4, 8, 1, 0},   {2, 0, 8, 1, 0},    {9, 3, 132, 1, 4},
                                 {17, 2, 5, 0, 1},  {3, 16, 20, 5, 0},  {2, 7, 9, 2, 3}};

template <class T>
struct Operands {
  using A = Accum<T>;
  int64_t tokens;
  Buffer<T> z;
  Buffer<A> own, pos, dx, down, dpos;  // the last two hold what to accumulate onto

  explicit Operands(const Case& t)
      : tokens(t.prefix + t.patches),
        z(t.batch * t.patches, t.dim, t.padding),
        own(t.prefix, t.dim),
        pos(tokens, t.dim),
        dx(t.batch * tokens, t.dim, t.padding),
        down(t.prefix, t.dim),
        dpos(tokens, t.dim) {
    fill_normal(z, 1);
    fill_normal(own, 2);
    fill_normal(pos, 3);
    fill_normal(dx, 4);
    fill_normal(down, 5);
    fill_normal(dpos, 6);
  }
};

template <class T>
Buffer<Accum<T>> forward(const Operands<T>& in, const Case& t, const Queue& queue = {}) {
  Buffer<Accum<T>> x(t.batch * in.tokens, t.dim, t.padding);
  OF_RUN(queue, patch_embed_forward,
         PatchEmbedForward<T>{.z = in.z.data(),
                              .ldz = in.z.ld(),
                              .own = t.prefix > 0 ? in.own.data() : nullptr,
                              .pos = in.pos.data(),
                              .x = x.data(),
                              .ldx = x.ld(),
                              .batch = t.batch,
                              .prefix = t.prefix,
                              .patches = t.patches,
                              .dim = t.dim});
  finish(queue);
  return x;
}

template <class T>
struct Gradients {
  Buffer<T> dz;
  Buffer<Accum<T>> down, dpos;
};
template <class T>
Gradients<T> backward(const Operands<T>& in, const Case& t, bool accumulate,
                      const Queue& queue = {}) {
  Gradients<T> g{Buffer<T>(t.batch * t.patches, t.dim, t.padding),
                 Buffer<Accum<T>>(t.prefix, t.dim), Buffer<Accum<T>>(in.tokens, t.dim)};
  if (accumulate) {
    g.down = in.down;
    g.dpos = in.dpos;
  }
  OF_RUN(queue, patch_embed_backward,
         PatchEmbedBackward<T>{.dx = in.dx.data(),
                               .lddx = in.dx.ld(),
                               .dz = g.dz.data(),
                               .lddz = g.dz.ld(),
                               .down = t.prefix > 0 ? g.down.data() : nullptr,
                               .dpos = g.dpos.data(),
                               .accumulate = accumulate,
                               .batch = t.batch,
                               .prefix = t.prefix,
                               .patches = t.patches,
                               .dim = t.dim});
  finish(queue);
  return g;
}

template <class T>
class PatchEmbed : public testing::Test {};
using Types = testing::Types<double, float, bf16>;
TYPED_TEST_SUITE(PatchEmbed, Types);

TYPED_TEST(PatchEmbed, Forward) {
  using T = TypeParam;
  for (const Case& t : cases) {
    SCOPED_TRACE(testing::Message() << t.batch << " x " << t.patches << " x " << t.dim);
    const Operands<T> in(t);
    std::vector<double> want;  // [batch * tokens, dim]
    for (int64_t b = 0; b < t.batch; ++b) {
      for (int64_t i = 0; i < in.tokens; ++i) {
        for (int64_t j = 0; j < t.dim; ++j) {
          const int64_t patch = i - t.prefix;
          want.push_back(in.pos(i, j) + (patch < 0 ? double(in.own(i, j))
                                                   : double(in.z(b * t.patches + patch, j))));
        }
      }
    }
    for_each_device<T>([&](const Queue& queue) {
      const Buffer<Accum<T>> x = forward(in, t, queue);
      EXPECT_TRUE(close(x, want, Budget{0.5 * epsilon<Accum<T>>, 0}));
      EXPECT_TRUE(identical(x, forward(in, t, queue)));
    });
  }
}

TYPED_TEST(PatchEmbed, Backward) {
  using T = TypeParam;
  for (const Case& t : cases) {
    for (const bool accumulate : {false, true}) {
      SCOPED_TRACE(testing::Message()
                   << t.batch << " x " << t.patches << " x " << t.dim << " " << accumulate);
      const Operands<T> in(t);
      std::vector<double> dz, dpos, down, size;  // size: sum of magnitudes behind dpos
      for (int64_t b = 0; b < t.batch; ++b) {
        for (int64_t i = t.prefix; i < in.tokens; ++i) {
          for (int64_t j = 0; j < t.dim; ++j) dz.push_back(double(in.dx(b * in.tokens + i, j)));
        }
      }
      for (int64_t i = 0; i < in.tokens; ++i) {
        for (int64_t j = 0; j < t.dim; ++j) {
          double sum = accumulate ? double(in.dpos(i, j)) : 0, magnitude = std::abs(sum);
          double sum_own = accumulate && i < t.prefix ? double(in.down(i, j)) : 0;
          magnitude += std::abs(sum_own);
          for (int64_t b = 0; b < t.batch; ++b) {
            sum += double(in.dx(b * in.tokens + i, j));
            sum_own += double(in.dx(b * in.tokens + i, j));
            magnitude += std::abs(double(in.dx(b * in.tokens + i, j)));
          }
          dpos.push_back(sum);
          if (i < t.prefix) down.push_back(sum_own);
          size.push_back(magnitude);
        }
      }
      const double sums = double(t.batch + 1) * epsilon<Accum<T>>;
      const auto allowed = [&](int64_t i, int64_t j) -> double {
        return sums * size[size_t(i * t.dim + j)];
      };
      for_each_device<T>([&](const Queue& queue) {
        const Gradients<T> g = backward(in, t, accumulate, queue);
        const Gradients<T> again = backward(in, t, accumulate, queue);
        EXPECT_TRUE(close(g.dz, dz, Budget{0.5 * epsilon<T>, 0}));
        EXPECT_TRUE(close(g.dpos, dpos, allowed));
        EXPECT_TRUE(identical(g.dz, again.dz));
        EXPECT_TRUE(identical(g.dpos, again.dpos));
        if (t.prefix == 0) return;
        EXPECT_TRUE(close(g.down, down, allowed));
        EXPECT_TRUE(identical(g.down, again.down));
      });
    }
  }
}

TEST(PatchEmbedGradient, AgreesWithFiniteDifferences) {
  const Case t{2, 3, 4, 3, 1};
  Operands<double> in(t);
  const auto loss = [&] { return weighted_sum(forward(in, t), in.dx); };
  const Gradients<double> g = backward(in, t, false);
  EXPECT_TRUE(check_gradient(loss, in.z, g.dz));
  EXPECT_TRUE(check_gradient(loss, in.own, g.down));
  EXPECT_TRUE(check_gradient(loss, in.pos, g.dpos));
}

// Frozen tokens: only dz is written, from the rows after the prefix.
TEST(PatchEmbedGradient, FrozenTokensAreNotTouched) {
  for (const Case t : {Case{2, 3, 4, 1, 0}, Case{19, 5, 7, 2, 0}}) {
    const Operands<float> in(t);
    for_each_device<float>([&](const Queue& queue) {
      const Gradients<float> all = backward(in, t, false, queue);
      Buffer<float> dz(t.batch * t.patches, t.dim);
      OF_RUN(queue, patch_embed_backward,
             PatchEmbedBackward<float>{.dx = in.dx.data(),
                                       .lddx = in.dx.ld(),
                                       .dz = dz.data(),
                                       .lddz = dz.ld(),
                                       .batch = t.batch,
                                       .prefix = t.prefix,
                                       .patches = t.patches,
                                       .dim = t.dim});
      finish(queue);
      EXPECT_TRUE(identical(dz, all.dz));
      OF_RUN(queue, patch_embed_backward,
             PatchEmbedBackward<float>{.dx = in.dx.data(),
                                       .lddx = in.dx.ld(),
                                       .batch = t.batch,
                                       .prefix = t.prefix,
                                       .patches = t.patches,
                                       .dim = t.dim});
      finish(queue);
    });
  }
}

}  // namespace
}  // namespace orthofed
