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
  int64_t batch, patches, dim;
  bool class_token;
  int64_t padding;
};
const std::vector<Case> cases = {{1, 1, 1, true, 0},    {2, 4, 3, true, 1},    {3, 63, 17, true, 0},
                                 {2, 64, 96, false, 3}, {1, 196, 33, true, 5}, {5, 13, 8, false, 0},
                                 {0, 4, 8, true, 0},    {2, 0, 8, true, 0},    {9, 3, 132, true, 4},
                                 {17, 2, 5, false, 1}};

template <class T>
struct Operands {
  using A = Accum<T>;
  int64_t tokens;
  Buffer<T> z;
  Buffer<A> cls, pos, dx, dcls, dpos;  // the last two hold what to accumulate onto

  explicit Operands(const Case& t)
      : tokens(t.patches + t.class_token),
        z(t.batch * t.patches, t.dim, t.padding),
        cls(1, t.dim),
        pos(tokens, t.dim),
        dx(t.batch * tokens, t.dim, t.padding),
        dcls(1, t.dim),
        dpos(tokens, t.dim) {
    fill_normal(z, 1);
    fill_normal(cls, 2);
    fill_normal(pos, 3);
    fill_normal(dx, 4);
    fill_normal(dcls, 5);
    fill_normal(dpos, 6);
  }
};

template <class T>
Buffer<Accum<T>> forward(const Operands<T>& in, const Case& t, const Queue& queue = {}) {
  Buffer<Accum<T>> x(t.batch * in.tokens, t.dim, t.padding);
  of_on(queue, patch_embed_forward, T)(in.z.data(), in.z.ld(),
                                       t.class_token ? in.cls.data() : nullptr, in.pos.data(),
                                       x.data(), x.ld(), t.batch, t.patches, t.dim);
  finish(queue);
  return x;
}

template <class T>
struct Gradients {
  Buffer<T> dz;
  Buffer<Accum<T>> dcls, dpos;
};
template <class T>
Gradients<T> backward(const Operands<T>& in, const Case& t, bool accumulate,
                      const Queue& queue = {}) {
  Gradients<T> g{Buffer<T>(t.batch * t.patches, t.dim, t.padding), Buffer<Accum<T>>(1, t.dim),
                 Buffer<Accum<T>>(in.tokens, t.dim)};
  if (accumulate) {
    g.dcls = in.dcls;
    g.dpos = in.dpos;
  }
  of_on(queue, patch_embed_backward, T)(in.dx.data(), in.dx.ld(), g.dz.data(), g.dz.ld(),
                                        t.class_token ? g.dcls.data() : nullptr, g.dpos.data(),
                                        accumulate, t.class_token, t.batch, t.patches, t.dim);
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
          const int64_t patch = i - t.class_token;
          want.push_back(in.pos(i, j) + (patch < 0 ? double(in.cls(0, j))
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
      std::vector<double> dz, dpos, dcls, size;  // size: sum of magnitudes behind dpos
      for (int64_t b = 0; b < t.batch; ++b) {
        for (int64_t i = t.class_token; i < in.tokens; ++i) {
          for (int64_t j = 0; j < t.dim; ++j) dz.push_back(double(in.dx(b * in.tokens + i, j)));
        }
      }
      for (int64_t i = 0; i < in.tokens; ++i) {
        for (int64_t j = 0; j < t.dim; ++j) {
          double sum = accumulate ? double(in.dpos(i, j)) : 0, magnitude = std::abs(sum);
          double sum_cls = accumulate ? double(in.dcls(0, j)) : 0;
          if (i == 0) magnitude += std::abs(sum_cls);
          for (int64_t b = 0; b < t.batch; ++b) {
            sum += double(in.dx(b * in.tokens + i, j));
            sum_cls += double(in.dx(b * in.tokens + i, j));
            magnitude += std::abs(double(in.dx(b * in.tokens + i, j)));
          }
          dpos.push_back(sum);
          if (i == 0) dcls.push_back(sum_cls);
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
        if (!t.class_token) return;
        EXPECT_TRUE(close(g.dcls, dcls, allowed));
        EXPECT_TRUE(identical(g.dcls, again.dcls));
      });
    }
  }
}

TEST(PatchEmbedGradient, AgreesWithFiniteDifferences) {
  const Case t{2, 3, 4, true, 1};
  Operands<double> in(t);
  const auto loss = [&] { return weighted_sum(forward(in, t), in.dx); };
  const Gradients<double> g = backward(in, t, false);
  EXPECT_TRUE(check_gradient(loss, in.z, g.dz));
  EXPECT_TRUE(check_gradient(loss, in.cls, g.dcls));
  EXPECT_TRUE(check_gradient(loss, in.pos, g.dpos));
}

// Frozen tokens: only dz is written, from the rows after the class token.
TEST(PatchEmbedGradient, FrozenTokensAreNotTouched) {
  for (const Case t : {Case{2, 3, 4, true, 0}, Case{19, 5, 7, true, 0}}) {
    const Operands<float> in(t);
    for_each_device<float>([&](const Queue& queue) {
      const Gradients<float> all = backward(in, t, false, queue);
      Buffer<float> dz(t.batch * t.patches, t.dim);
      of_on(queue, patch_embed_backward, float)(in.dx.data(), in.dx.ld(), dz.data(), dz.ld(),
                                                nullptr, nullptr, false, true, t.batch, t.patches,
                                                t.dim);
      finish(queue);
      EXPECT_TRUE(identical(dz, all.dz));
      of_on(queue, patch_embed_backward, float)(in.dx.data(), in.dx.ld(), nullptr, 0, nullptr,
                                                nullptr, false, true, t.batch, t.patches, t.dim);
      finish(queue);
    });
  }
}

TEST(PatchEmbedContract, RefusesAClassGradientWithoutAClassToken) {
  const Case t{1, 2, 4, false, 0};
  const Operands<float> in(t);
  Buffer<float> dcls(1, t.dim);
  for_each_device<float>([&](const Queue& queue) {
    EXPECT_THROW(
        (of_on(queue, patch_embed_backward, float)(in.dx.data(), in.dx.ld(), nullptr, 0,
                                                   dcls.data(), nullptr, false, false, 1, 2, 4)),
        Error);
  });
}

}  // namespace
}  // namespace orthofed
