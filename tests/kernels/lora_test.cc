#include "kernels/lora/lora.h"

#include <gtest/gtest.h>

#include <cmath>
#include <type_traits>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/parallel.h"
#include "tests/kernels/lora_reference.h"
#include "tests/support/buffer.h"
#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/gradcheck.h"
#include "tests/support/random.h"

namespace orthofed {
namespace {

using namespace orthofed::test;

struct Case {
  int64_t rows, in, out, rank, padding;
};
// Odd sizes around the tiles of the products, a real layer, more outputs times rank than one part
// of the scaled copy holds, and more ranks than one launch takes.
const std::vector<Case> cases = {{1, 1, 1, 1, 0},      {7, 5, 3, 2, 1},       {97, 33, 31, 5, 3},
                                 {65, 96, 288, 16, 0}, {197, 192, 64, 16, 2}, {5, 40, 4099, 17, 1},
                                 {0, 8, 8, 4, 0},      {4, 8, 8, 0, 1},       {33, 72, 70, 70, 2}};

template <class T>
struct Operands {
  using A = Accum<T>;
  Case size;
  Buffer<T> x, u, du, y, dy, dx;
  Buffer<A> a, b, da, db, w;
  Buffer<A> scale;

  explicit Operands(const Case& t)
      : size(t),
        x(t.rows, t.in, t.padding),
        u(t.rows, t.rank, t.padding),
        du(u),
        y(t.rows, t.out, t.padding),
        dy(y),
        dx(x),
        a(t.rank, t.in, t.padding),
        b(t.out, t.rank, t.padding),
        da(a),
        db(b),
        w(t.out, t.in, t.padding),
        scale(1, t.rank) {
    fill_normal(x, 1);
    fill_normal(u, 2);
    fill_normal(du, 3);
    fill_normal(y, 4);
    fill_normal(dy, 5);
    fill_normal(dx, 6);
    fill_normal(a, 7);
    fill_normal(b, 8);
    fill_normal(da, 9);
    fill_normal(db, 10);
    fill_normal(w, 11);
    fill_uniform(scale, 12, 0.5, 4);
  }

  void down(const Queue& queue = {}) {
    OF_RUN(queue, lora_down,
           LoraDown<T>{.x = x.data(),
                       .ldx = x.ld(),
                       .a = a.data(),
                       .lda = a.ld(),
                       .u = u.data(),
                       .ldu = u.ld(),
                       .rows = size.rows,
                       .in = size.in,
                       .rank = size.rank});
    finish(queue);
  }
  void up(const Queue& queue = {}) {
    OF_RUN(queue, lora_up,
           LoraUp<T>{.u = u.data(),
                     .ldu = u.ld(),
                     .b = b.data(),
                     .ldb = b.ld(),
                     .scale = scale.data(),
                     .y = y.data(),
                     .ldy = y.ld(),
                     .rows = size.rows,
                     .out = size.out,
                     .rank = size.rank});
    finish(queue);
  }
  void up_backward(bool accumulate, const Queue& queue = {}) {
    const WithScratch with(queue, gpu::lora_up_backward_scratch<T>(size.rows, size.out, size.rank));
    OF_RUN(with, lora_up_backward,
           LoraUpBackward<T>{.dy = dy.data(),
                             .lddy = dy.ld(),
                             .u = u.data(),
                             .ldu = u.ld(),
                             .b = b.data(),
                             .ldb = b.ld(),
                             .scale = scale.data(),
                             .du = du.data(),
                             .lddu = du.ld(),
                             .db = db.data(),
                             .lddb = db.ld(),
                             .accumulate = accumulate,
                             .rows = size.rows,
                             .out = size.out,
                             .rank = size.rank});
    finish(queue);
  }
  void down_backward(bool accumulate, bool need_dx = true, const Queue& queue = {}) {
    const WithScratch with(queue,
                           gpu::lora_down_backward_scratch<T>(size.rows, size.in, size.rank));
    OF_RUN(with, lora_down_backward,
           LoraDownBackward<T>{.du = du.data(),
                               .lddu = du.ld(),
                               .x = x.data(),
                               .ldx = x.ld(),
                               .a = a.data(),
                               .lda = a.ld(),
                               .da = da.data(),
                               .ldda = da.ld(),
                               .accumulate = accumulate,
                               .dx = need_dx ? dx.data() : nullptr,
                               .lddx = dx.ld(),
                               .rows = size.rows,
                               .in = size.in,
                               .rank = size.rank});
    finish(queue);
  }
  // merged from w0, of whatever type `merged` has.
  template <class To>
  LoraMerge<To> merging(const Buffer<A>& w0, Buffer<To>& merged) const {
    return {.w = w0.data(),
            .ldw = w0.ld(),
            .a = a.data(),
            .lda = a.ld(),
            .b = b.data(),
            .ldb = b.ld(),
            .scale = scale.data(),
            .merged = merged.data(),
            .ldm = merged.ld(),
            .out = size.out,
            .in = size.in,
            .rank = size.rank};
  }

  reference::Lora exact() const {
    const auto elements = [](const auto& m) {
      return [&m](int64_t i, int64_t j) { return double(m(i, j)); };
    };
    return {.rows = size.rows,
            .in = size.in,
            .out = size.out,
            .rank = size.rank,
            .x = elements(x),
            .a = elements(a),
            .b = elements(b),
            .u = elements(u),
            .dy = elements(dy),
            .du = elements(du),
            .scale = [this](int64_t r) { return double(scale(0, r)); }};
  }
};

// out against want(i, j), within lora.h's budget; `extra` times sum |terms| comes on top.
template <class T, class C, class Want>
testing::AssertionResult check(const Buffer<C>& out, double extra, const Want& want) {
  std::vector<double> values(size_t(out.rows() * out.cols())), budget(values.size());
  for (int64_t i = 0; i < out.rows(); ++i) {
    for (int64_t j = 0; j < out.cols(); ++j) {
      const auto at = size_t(i * out.cols() + j);
      const reference::Sum sum = want(i, j);
      const double error = extra + 0.5 * epsilon<Accum<T>> * double(sum.terms + 3) *
                                       (std::is_same_v<T, double> ? 2 : 1);
      values[at] = sum.value;
      budget[at] = error * sum.size + 0.5 * epsilon<C> * (std::abs(sum.value) + error * sum.size);
    }
  }
  return close(out, values,
               [&](int64_t i, int64_t j) -> double { return budget[size_t(i * out.cols() + j)]; });
}

// What splitting numbers into bf16 pieces costs: of two activations, of an adapter.
template <class T>
double activation_pieces(const Queue& queue) {
  return queue.device != Device::cpu && std::is_same_v<T, float> ? epsilon<float> : 0;
}
template <class T>
double adapter_pieces(const Queue& queue) {
  const bool native = queue.device != Device::cpu || cpu::native_bf16();
  return native && std::is_same_v<T, bf16> ? 0x1p-17 : activation_pieces<T>(queue);
}

template <class T>
class Lora : public testing::Test {};
using Types = testing::Types<double, float, bf16>;
TYPED_TEST_SUITE(Lora, Types);

// Every output of all calls against the dense products. expansions: y and dx, too.
template <class T>
void expect_dense_products(const Operands<T>& in, bool accumulate, const Queue& queue,
                           bool expansions = true) {
  const double plain = activation_pieces<T>(queue), adapter = adapter_pieces<T>(queue);
  Operands<T> got = in, again = in;
  Buffer<T> u = in.u, du = in.du;
  for (Operands<T>* run : {&again, &got}) {
    run->down(queue);
    u = run->u;
    run->u = in.u;
    if (expansions) run->up(queue);
    run->up_backward(accumulate, queue);
    du = run->du;
    run->du = in.du;
    run->down_backward(accumulate, expansions, queue);
  }
  const reference::Lora want = in.exact();
  EXPECT_TRUE(check<T>(u, adapter, [&](int64_t i, int64_t r) { return want.u_of(i, r); }));
  EXPECT_TRUE(check<T>(du, adapter, [&](int64_t i, int64_t r) { return want.du_of(i, r); }));
  EXPECT_TRUE(check<T>(got.db, plain, [&](int64_t o, int64_t r) {
    return want.db_of(o, r) + (accumulate ? double(in.db(o, r)) : 0);
  }));
  EXPECT_TRUE(check<T>(got.da, plain, [&](int64_t r, int64_t c) {
    return want.da_of(r, c) + (accumulate ? double(in.da(r, c)) : 0);
  }));
  EXPECT_TRUE(identical(got.db, again.db));
  EXPECT_TRUE(identical(got.da, again.da));
  if (!expansions) return;
  EXPECT_TRUE(check<T>(got.y, adapter,
                       [&](int64_t i, int64_t o) { return want.y_of(i, o) + double(in.y(i, o)); }));
  EXPECT_TRUE(check<T>(got.dx, adapter, [&](int64_t i, int64_t c) {
    return want.dx_of(i, c) + double(in.dx(i, c));
  }));
  EXPECT_TRUE(identical(got.y, again.y));
  EXPECT_TRUE(identical(got.dx, again.dx));
}

TYPED_TEST(Lora, AgreesWithDenseProducts) {
  using T = TypeParam;
  bool accumulate = false;
  for (const Case& t : cases) {
    SCOPED_TRACE(testing::Message()
                 << t.rows << " x " << t.in << " -> " << t.out << ", rank " << t.rank);
    const Operands<T> in(t);
    for_each_isa([&] {
      expect_dense_products(in, false, Queue{});
      expect_dense_products(in, true, Queue{});
    });
    if (!gpu_computes<T> || t.out > 1000) continue;  // a limit of the CPU's, slow in the emulator
    for_each_gpu([&](const Queue& queue) { expect_dense_products(in, accumulate, queue); });
    accumulate = !accumulate;
  }
}

// So many rows that a block of the GPU's kernels has two tiles of them, the last one short.
TEST(LoraBlocks, TwoTilesOfRowsABlock) {
  const Operands<bf16> in({132 * 64 + 1, 65, 3, 2, 1});
  for_each_gpu([&](const Queue& queue) {
    if (queue.device == Device::simt && queue.simt.schedule != simt::Schedule::random) return;
    expect_dense_products(in, true, queue, /*expansions=*/false);
  });
}

TYPED_TEST(Lora, MergeAgreesWithDenseProducts) {
  using T = TypeParam;
  for (const Case& t : cases) {
    const Operands<T> in(t);
    for_each_device<T>([&](const Queue& queue) {
      Buffer<T> merged(t.out, t.in, t.padding);
      OF_RUN(queue, lora_merge, in.merging(in.w, merged));
      finish(queue);
      const reference::Lora want = in.exact();
      EXPECT_TRUE(check<T>(merged, 0, [&](int64_t o, int64_t c) {
        return want.delta_of(o, c) + double(in.w(o, c));
      }));
      if constexpr (std::is_same_v<T, Accum<T>>) {  // in place
        Buffer<T> w = in.w;
        OF_RUN(queue, lora_merge, in.merging(w, w));
        finish(queue);
        EXPECT_TRUE(identical(w, merged));
      }
    });
  }
}

TYPED_TEST(Lora, ScaleGivesTheRoundedProduct) {
  using T = TypeParam;
  for (const Case& t : cases) {
    const Operands<T> in(t);
    for_each_device<T>([&](const Queue& queue) {
      Buffer<T> v(t.out, t.rank, t.padding + 1);
      OF_RUN(queue, lora_scale,
             LoraScale<T>{.b = in.b.data(),
                          .ldb = in.b.ld(),
                          .scale = in.scale.data(),
                          .v = v.data(),
                          .ldv = v.ld(),
                          .out = t.out,
                          .rank = t.rank});
      finish(queue);
      std::vector<double> want;
      for (int64_t i = 0; i < t.out; ++i)
        for (int64_t r = 0; r < t.rank; ++r) want.push_back(T(in.scale(0, r) * in.b(i, r)));
      EXPECT_TRUE(close(v, want, Budget{}));
    });
  }
}

TEST(LoraGradient, AgreesWithFiniteDifferences) {
  Operands<double> in({6, 5, 4, 3, 1});
  const Buffer<double> base = in.y;
  const auto loss = [&] {
    in.y = base;
    in.down();
    in.up();
    return weighted_sum(in.y, in.dy);
  };
  loss();
  in.dx.fill(0);
  in.up_backward(false);
  in.down_backward(false);
  EXPECT_TRUE(check_gradient(loss, in.b, in.db));
  EXPECT_TRUE(check_gradient(loss, in.a, in.da));
  EXPECT_TRUE(check_gradient(loss, in.x, in.dx));
}

TEST(LoraGradient, WithoutDxOnlyDaIsWritten) {
  for_each_device<float>([](const Queue& queue) {
    const Case t{9, 7, 5, 3, 1};
    Operands<float> with(t), without(t);
    with.down_backward(false, true, queue);
    without.down_backward(false, /*need_dx=*/false, queue);
    EXPECT_TRUE(identical(with.da, without.da));
    EXPECT_TRUE(identical(without.dx, Operands<float>(t).dx));
  });
}

// y = W x + s B A x equals (W + s B A) x up to rounding.
TEST(LoraMerge, MergedEqualsUnmerged) {
  const Case t{5, 12, 9, 4, 0};
  Operands<double> in(t);
  Buffer<double> merged(t.out, t.in);
  cpu::lora_merge(in.merging(in.w, merged));
  std::vector<double> want;  // [rows, out]
  for (int64_t i = 0; i < t.rows; ++i) {
    for (int64_t o = 0; o < t.out; ++o) {
      double frozen = 0, sum = 0;
      for (int64_t c = 0; c < t.in; ++c) {
        frozen += in.w(o, c) * in.x(i, c);
        sum += merged(o, c) * in.x(i, c);
      }
      in.y(i, o) = frozen;
      want.push_back(sum);
    }
  }
  in.down();
  in.up();
  EXPECT_TRUE(close(in.y, want, Budget{1e-12, 1e-11}));
}

}  // namespace
}  // namespace orthofed
