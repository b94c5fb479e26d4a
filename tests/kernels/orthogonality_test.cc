// Every penalty against the formula taken literally: DeltaW = B A as a dense matrix in double, and
// its gradient by finite differences of that dense formula.
#include "kernels/orthogonality/orthogonality.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/check.h"
#include "tests/kernels/orthogonality_reference.h"
#include "tests/support/buffer.h"
#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/gradcheck.h"
#include "tests/support/random.h"

namespace {
std::atomic<int64_t> allocations{0};
}  // namespace

// Counts every allocation through new in this program.
[[gnu::noinline]] void* operator new(size_t size) {
  ++allocations;
  if (void* p = std::malloc(size)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept {
  std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept {
  std::free(p);
}

namespace orthofed::test {
namespace {

enum class Kind { update, base, subspace, subspace_l1, base_subspace };

struct Case {
  Kind kind;
  PenaltyForm form;
};

const std::vector<Case> cases = {
    {Kind::update, PenaltyForm::cosine2},        {Kind::update, PenaltyForm::abs_cosine},
    {Kind::update, PenaltyForm::raw2},           {Kind::base, PenaltyForm::cosine2},
    {Kind::base, PenaltyForm::abs_cosine},       {Kind::base, PenaltyForm::raw2},
    {Kind::subspace, PenaltyForm::cosine2},      {Kind::subspace_l1, PenaltyForm::cosine2},
    {Kind::base_subspace, PenaltyForm::cosine2},
};

// On a GPU one form stands for all, which share one function: `base` is slow in the emulator.
bool runs_on(const Queue& queue, Case c) {
  return queue.device == Device::cpu || c.form == PenaltyForm::cosine2;
}

std::string name_of(Case c) {
  const char* kinds[] = {"update", "base", "subspace", "subspace_l1", "base_subspace"};
  const char* forms[] = {"cosine2", "abs_cosine", "raw2"};
  return std::string(kinds[int(c.kind)]) + " " + forms[int(c.form)];
}

struct Shape {
  int64_t in, out, rank_g, rank_p, k;
};

// 1; odd primes; ranks that differ; one below, at and above the block widths 64 and 256; full rank.
const std::vector<Shape> shapes = {
    {1, 1, 1, 1, 1},    {5, 3, 2, 1, 2},    {13, 17, 3, 5, 4},     {63, 67, 8, 8, 16},
    {64, 64, 4, 8, 16}, {65, 29, 8, 4, 16}, {257, 131, 16, 7, 16}, {67, 71, 64, 64, 64},
};

// The tensors of one layer, in T. A is dense by contract, W0 has a pitch.
template <class T>
struct Tensors {
  Shape shape;
  Buffer<T> a_g, b_g, a_p, b_p, w0, v_k;
  double w0_norm2 = 0;

  explicit Tensors(Shape s)
      : shape(s),
        a_g(s.rank_g, s.in),
        b_g(s.out, s.rank_g),
        a_p(s.rank_p, s.in),
        b_p(s.out, s.rank_p),
        w0(s.out, s.in, 3),
        v_k(s.k, s.in) {
    // A mean away from zero, so that no cosine is zero by chance.
    fill_normal(a_g, 1, 0.3);
    fill_normal(b_g, 2, -0.2);
    fill_normal(a_p, 3, 0.2);
    fill_normal(b_p, 4, 0.3);
    fill_normal(w0, 5, 0.1);
    fill_normal(v_k, 6);  // the kernel's formula does not need orthonormal rows
    for (double w : w0.to_double()) w0_norm2 += w * w;
  }

  OrthogonalityLayer<T> layer() const {
    OrthogonalityLayer<T> l;
    l.in = shape.in, l.out = shape.out, l.rank_g = shape.rank_g, l.rank_p = shape.rank_p;
    l.a_g = a_g.data(), l.b_g = b_g.data(), l.a_p = a_p.data(), l.b_p = b_p.data();
    l.w0 = w0.data(), l.ld_w0 = w0.ld(), l.w0_norm2 = w0_norm2;
    l.v_k = v_k.data(), l.k = shape.k;
    return l;
  }
};

// Gradient buffers that already hold something: the kernel adds.
template <class T>
struct Gradients {
  std::array<Buffer<T>, 4> of;  // da_g, db_g, da_p, db_p

  explicit Gradients(Shape s)
      : of{Buffer<T>(s.rank_g, s.in), Buffer<T>(s.out, s.rank_g), Buffer<T>(s.rank_p, s.in),
           Buffer<T>(s.out, s.rank_p)} {
    for (auto& g : of) g.fill(T(0.5));
  }
  void attach(OrthogonalityLayer<T>& l) {
    l.da_g = of[0].data(), l.db_g = of[1].data(), l.da_p = of[2].data(), l.db_p = of[3].data();
  }
};

// Everything in the device's memory; no allocation.
template <class T>
void call(const Queue& queue, Case c, const OrthogonalityLayer<T>* layers, int64_t count,
          const double* weight, double* values) {
  const OrthogonalityPenalty<T> arguments{
      .layers = layers, .count = count, .form = c.form, .weight = weight, .values = values};
  switch (c.kind) {
    case Kind::update:
      return OF_RUN(queue, orthogonality_update, arguments);
    case Kind::base:
      return OF_RUN(queue, orthogonality_base, arguments);
    case Kind::subspace:
      return OF_RUN(queue, orthogonality_subspace, arguments);
    case Kind::subspace_l1:
      return OF_RUN(queue, orthogonality_subspace_l1, arguments);
    case Kind::base_subspace:
      return OF_RUN(queue, orthogonality_base_subspace, arguments);
  }
}

// Layers where every device reads them.
template <class T>
class SharedLayers {
 public:
  explicit SharedLayers(const std::vector<OrthogonalityLayer<T>>& layers)
      : memory_(allocate_shared(layers.size() * sizeof(OrthogonalityLayer<T>))) {
    std::copy(layers.begin(), layers.end(), data());
  }
  OrthogonalityLayer<T>* data() { return reinterpret_cast<OrthogonalityLayer<T>*>(memory_.get()); }

 private:
  SharedMemory memory_;
};

template <class T>
std::vector<double> run(Case c, const std::vector<OrthogonalityLayer<T>>& layers, double weight,
                        const Queue& queue = {}) {
  const auto count = int64_t(layers.size());
  Buffer<double> weights(1, 1), values(1, count);
  weights.fill(weight);
  SharedLayers<T> shared(layers);
  const WithScratch with(queue, gpu::orthogonality_base_scratch(count));
  call(with, c, shared.data(), count, weights.data(), values.data());
  finish(queue);
  EXPECT_TRUE(values.verify());
  return values.to_double();
}
template <class T>
double run(Case c, const OrthogonalityLayer<T>& layer, double weight, const Queue& queue = {}) {
  return run<T>(c, std::vector<OrthogonalityLayer<T>>{layer}, weight, queue)[0];
}

double dense(Case c, const Tensors<double>& t) {
  const Shape& s = t.shape;
  const reference::Orthogonality o{.in = s.in,
                                   .out = s.out,
                                   .rank_g = s.rank_g,
                                   .rank_p = s.rank_p,
                                   .k = s.k,
                                   .a_g = t.a_g.to_double(),
                                   .b_g = t.b_g.to_double(),
                                   .a_p = t.a_p.to_double(),
                                   .b_p = t.b_p.to_double(),
                                   .w0 = t.w0.to_double(),
                                   .v_k = t.v_k.to_double()};
  switch (c.kind) {
    case Kind::update:
      return o.update(c.form);
    case Kind::base:
      return o.base(c.form);
    case Kind::subspace:
      return o.subspace();
    case Kind::subspace_l1:
      return o.subspace_l1();
    case Kind::base_subspace:
      return o.base_subspace();
  }
  return NAN;
}

TEST(Orthogonality, values_equal_the_dense_formula) {
  for (const Shape& s : shapes) {
    const Tensors<double> t(s);
    for (const Case& c : cases) {
      SCOPED_TRACE(name_of(c) + " in " + std::to_string(s.in));
      const double want = dense(c, t);
      EXPECT_TRUE(s.in == 1 || want > 0) << "a case without anything to see";
      for_each_isa([&] {
        const double got = run(c, t.layer(), 0);
        EXPECT_TRUE(std::abs(got - want) <= 1e-11 * std::abs(want) + 1e-14) << got << " " << want;
      });
    }
  }
}

TEST(Orthogonality, gradients_equal_finite_differences_of_the_dense_formula) {
  const double weight = 0.7;
  for (const Shape& s : {shapes[1], shapes[2], Shape{9, 7, 8, 2, 5}})
    for (const Case& c : cases) {
      SCOPED_TRACE(name_of(c) + " in " + std::to_string(s.in));
      Tensors<double> t(s);
      // raw2 grows with the fourth power of the size; keep all losses of order 1.
      for (Buffer<double>* x : {&t.a_g, &t.b_g, &t.a_p, &t.b_p, &t.w0})
        for (int64_t i = 0; i < x->rows(); ++i)
          for (int64_t j = 0; j < x->cols(); ++j) (*x)(i, j) *= 0.3;
      t.w0_norm2 *= 0.09;
      auto layer = t.layer();
      Gradients<double> g(s);
      g.attach(layer);
      run(c, layer, weight);
      std::array<Buffer<double>*, 4> x = {&t.a_g, &t.b_g, &t.a_p, &t.b_p};
      const auto loss = [&] { return weight * dense(c, t); };
      for (size_t i = 0; i < 4; ++i) {
        Buffer<double> added = g.of[i];
        for (int64_t r = 0; r < added.rows(); ++r)
          for (int64_t j = 0; j < added.cols(); ++j) added(r, j) -= 0.5;
        EXPECT_TRUE(check_gradient(loss, *x[i], added, 1e-8)) << "gradient " << i;
      }
    }
}

// float against double on the same numbers: sums are double, so only the last rounding differs (and
// the second one, as a gradient is added in two products). All layers in one call.
void expect_float_equals_double(Case c, const std::vector<Shape>& all,
                                const std::vector<Queue>& queues) {
  SCOPED_TRACE(name_of(c));
  std::vector<Tensors<float>> floats;
  std::vector<double> values;
  std::vector<Gradients<double>> wanted;
  for (const Shape& s : all) {
    const Tensors<float>& t = floats.emplace_back(s);
    Tensors<double> d(s);
    d.a_g = convert<double>(t.a_g), d.b_g = convert<double>(t.b_g);
    d.a_p = convert<double>(t.a_p), d.b_p = convert<double>(t.b_p);
    d.w0 = convert<double>(t.w0), d.v_k = convert<double>(t.v_k), d.w0_norm2 = t.w0_norm2;
    auto layer = d.layer();
    wanted.emplace_back(s).attach(layer);
    values.push_back(run(c, layer, 0.7));
  }
  for (const Queue& queue : queues) {
    SCOPED_TRACE(name_of(queue.device));
    std::vector<Gradients<float>> got(all.begin(), all.end()), again = got;
    const auto values_with = [&](std::vector<Gradients<float>>& gradients) {
      std::vector<OrthogonalityLayer<float>> layers;
      for (size_t l = 0; l < all.size(); ++l)
        gradients[l].attach(layers.emplace_back(floats[l].layer()));
      return run(c, layers, 0.7, queue);
    };
    const auto got_values = values_with(got);
    EXPECT_EQ(values_with(again), got_values) << "a second run";
    for (size_t l = 0; l < all.size(); ++l) {
      SCOPED_TRACE("in " + std::to_string(all[l].in));
      EXPECT_TRUE(std::abs(got_values[l] - values[l]) <= 1e-11 * std::abs(values[l]))
          << got_values[l] << " " << values[l];
      for (size_t i = 0; i < 4; ++i) {
        EXPECT_TRUE(identical(got[l].of[i], again[l].of[i]));
        // Between the products the sum may be larger than what is left in the end.
        const auto want = wanted[l].of[i].to_double();
        double largest = 0;
        for (double v : want) largest = std::max(largest, std::abs(v));
        EXPECT_TRUE(
            close(got[l].of[i], want, Budget{2 * epsilon<float>, 2 * epsilon<float> * largest}))
            << "gradient " << i;
      }
    }
  }
}

TEST(Orthogonality, float_equals_double_up_to_the_last_rounding) {
  for_each_isa([] {
    for (const Case& c : cases) expect_float_equals_double(c, shapes, {Queue{}});
  });
}

TEST(Orthogonality, float_on_a_gpu_equals_double_up_to_the_last_rounding) {
  std::vector<Queue> queues;
  for_each_gpu([&](const Queue& queue) { queues.push_back(queue); });
  const std::vector<Shape> small = {
      {1, 1, 1, 1, 1}, {13, 17, 3, 5, 4}, {65, 29, 8, 4, 16}, {33, 131, 9, 1, 2}};
  for (const Case& c : cases)
    if (c.kind == Kind::update || c.form == PenaltyForm::cosine2)
      expect_float_equals_double(c, small, queues);
}

// The shared memory that a launch may ask for holds three matrices of 64 x 64 and no more. (`base`
// needs two.)
TEST(Orthogonality, the_largest_ranks_on_a_gpu) {
  std::vector<Queue> queues;
  for_each_gpu([&](const Queue& queue) {
    if (queue.device == Device::cuda || queue.simt.schedule == simt::Schedule::random)
      queues.push_back(queue);
  });
  for (const Case& c : cases)
    if (c.form == PenaltyForm::cosine2 && c.kind != Kind::base)
      expect_float_equals_double(c, {{35, 17, 64, 64, 64}}, queues);
}

TEST(Orthogonality, the_number_of_threads_changes_no_bit) {
  const int before = cpu::threads();
  const Shape s{515, 771, 16, 16, 16};
  const Tensors<float> t(s);
  for (const Case& c : cases) {
    SCOPED_TRACE(name_of(c));
    Gradients<float> one(s), three(s);
    auto layer = t.layer();
    cpu::set_threads(1);
    one.attach(layer);
    const double value = run(c, layer, 1);
    cpu::set_threads(3);
    three.attach(layer);
    EXPECT_EQ(run(c, layer, 1), value);
    for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(identical(one.of[i], three.of[i]));
  }
  cpu::set_threads(before);
}

TEST(Orthogonality, at_the_start_B_is_zero_and_so_are_value_and_gradient) {
  const Shape s{13, 17, 3, 5, 4};
  for (const Case& c : cases) {
    if (c.kind == Kind::subspace || c.kind == Kind::subspace_l1) continue;  // functions of A alone
    SCOPED_TRACE(name_of(c));
    Tensors<float> t(s);
    t.b_g.fill(0), t.b_p.fill(0);
    auto layer = t.layer();
    Gradients<float> g(s), untouched(s);
    g.attach(layer);
    for_each_device<float>([&](const Queue& queue) {
      if (!runs_on(queue, c)) return;
      EXPECT_EQ(run(c, layer, 1, queue), 0);
      for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(identical(g.of[i], untouched.of[i]));
    });
  }
}

// Adapters after one step at a small learning rate: an additive epsilon of 1e-8 would switch the
// penalty off here.
TEST(Orthogonality, a_cosine_does_not_depend_on_the_size_of_the_update) {
  const Shape s{13, 17, 3, 5, 4};
  for (const Case& c : cases) {
    if (c.form == PenaltyForm::raw2) continue;
    SCOPED_TRACE(name_of(c));
    Tensors<double> t(s);
    const double want = run(c, t.layer(), 0);
    for (Buffer<double>* b : {&t.b_g, &t.b_p})
      for (int64_t i = 0; i < b->rows(); ++i)
        for (int64_t j = 0; j < b->cols(); ++j) (*b)(i, j) *= 1e-6;
    const double got = run(c, t.layer(), 0);
    EXPECT_TRUE(std::abs(got - want) <= 1e-12 * want) << got << " " << want;
  }
}

TEST(Orthogonality, one_and_zero_where_geometry_says_so) {
  const Shape s{16, 12, 4, 4, 4};
  Tensors<double> t(s);
  t.a_p = t.a_g, t.b_p = t.b_g;
  EXPECT_NEAR(run({Kind::update, PenaltyForm::cosine2}, t.layer(), 0), 1, 1e-14);
  EXPECT_NEAR(run({Kind::update, PenaltyForm::abs_cosine}, t.layer(), 0), 1, 1e-14);
  // Rows of A_g and A_p in disjoint coordinates: every penalty between g and p vanishes.
  for (int64_t i = 0; i < 4; ++i)
    for (int64_t j = 0; j < s.in; ++j) (j < 8 ? t.a_p : t.a_g)(i, j) = 0;
  EXPECT_EQ(run({Kind::update, PenaltyForm::cosine2}, t.layer(), 0), 0);
  EXPECT_EQ(run({Kind::subspace, PenaltyForm::cosine2}, t.layer(), 0), 0);
  EXPECT_EQ(run({Kind::subspace_l1, PenaltyForm::cosine2}, t.layer(), 0), 0);
  // V_k orthonormal and equal to the rows of A_g's row space: all of DeltaW_g lies within.
  t.a_g.fill(0), t.v_k.fill(0), t.b_p.fill(0);
  for (int64_t i = 0; i < 4; ++i) t.a_g(i, i) = 1 + i, t.v_k(i, i) = 1;
  EXPECT_NEAR(run({Kind::base_subspace, PenaltyForm::cosine2}, t.layer(), 0), 0.5,
              1e-14);  // 1 for g, 0 for p
}

TEST(Orthogonality, gradients_that_nobody_wants_are_not_needed) {
  const Shape s{13, 17, 3, 5, 4};
  const Tensors<float> t(s);
  for (const Case& c : cases) {
    SCOPED_TRACE(name_of(c));
    for_each_device<float>([&](const Queue& queue) {
      if (!runs_on(queue, c)) return;
      auto all = t.layer(), detached = t.layer(), none = t.layer();
      Gradients<float> g(s), h(s), untouched(s);
      g.attach(all);
      const double value = run(c, all, 1, queue);
      h.attach(detached);
      detached.da_g = detached.db_g = nullptr;  // detach = "general"
      EXPECT_EQ(run(c, detached, 1, queue), value);
      EXPECT_TRUE(identical(h.of[0], untouched.of[0]));
      EXPECT_TRUE(identical(h.of[2], g.of[2]));
      EXPECT_TRUE(identical(h.of[3], g.of[3]));
      EXPECT_EQ(run(c, none, 1, queue), value);
      EXPECT_EQ(run(c, detached, 0, queue), value) << "weight 0";
      EXPECT_TRUE(identical(h.of[2], g.of[2])) << "weight 0 adds nothing";
    });
  }
}

TEST(Orthogonality, NaN_in_an_adapter_is_not_hidden_by_the_rule_for_zero) {
  for (const Case& c : cases) {
    SCOPED_TRACE(name_of(c));
    Tensors<float> t({13, 17, 3, 5, 4});
    t.a_p(1, 2) = std::numeric_limits<float>::quiet_NaN();
    for_each_device<float>([&](const Queue& queue) {
      if (!runs_on(queue, c)) return;
      EXPECT_TRUE(std::isnan(run(c, t.layer(), 0, queue)));
    });
  }
}

// (A trap on a real GPU would end the whole test.)
TEST(Orthogonality, ranks_beyond_the_limit_are_refused) {
  const Shape s{70, 70, 65, 4, 4};
  const Tensors<float> t(s);
  for_each_device<float>([&](const Queue& queue) {
    if (queue.device == Device::cuda) return;
    for (const Case& c : cases) EXPECT_THROW(run(c, t.layer(), 0, queue), Error) << name_of(c);
    const auto layer = t.layer();
    std::vector<double> norms2(2);
    const DeltaNorm2<float> arguments{.layers = &layer, .count = 1, .norms2 = norms2.data()};
    EXPECT_THROW(OF_RUN(queue, delta_norm2, arguments), Error);
  });
}

TEST(Orthogonality, delta_norm2_equals_the_dense_norm) {
  std::vector<Tensors<float>> all(shapes.begin(), shapes.end());
  std::vector<OrthogonalityLayer<float>> layers;
  std::vector<double> want;
  for (const Tensors<float>& t : all) {
    layers.push_back(t.layer());
    for (const auto& [a, b] : {std::pair{&t.a_g, &t.b_g}, std::pair{&t.a_p, &t.b_p}}) {
      const auto d =
          reference::product(b->to_double(), a->to_double(), b->rows(), a->rows(), a->cols());
      want.push_back(reference::inner(d, d));
    }
  }
  SharedLayers<float> shared(layers);
  for_each_device<float>([&](const Queue& queue) {
    Buffer<double> norms2(int64_t(layers.size()), 2);
    OF_RUN(queue, delta_norm2,
           DeltaNorm2<float>{
               .layers = shared.data(), .count = norms2.rows(), .norms2 = norms2.data()});
    finish(queue);
    EXPECT_TRUE(close(norms2, want, Budget{1e-12, 0}));
  });
}

// `features`: u = A x of each token is given.
template <class U>
struct Tokens {
  int64_t rows, out, rank_g, rank_p;
  Buffer<U> u_g, u_p;
  Buffer<Accum<U>> b_g, b_p, du_g, du_p, db_g, db_p;
  Buffer<double> weight{1, 1}, value{1, 1};

  Tokens(int64_t tokens, int64_t outputs, int64_t rg, int64_t rp)
      : rows(tokens),
        out(outputs),
        rank_g(rg),
        rank_p(rp),
        u_g(tokens, rg, 5),
        u_p(tokens, rp, 3),
        b_g(outputs, rg),
        b_p(outputs, rp),
        du_g(tokens, rg, 1),
        du_p(tokens, rp, 2),
        db_g(outputs, rg),
        db_p(outputs, rp) {
    fill_normal(u_g, 11, 0.1);
    fill_normal(u_p, 12, 0.2);
    fill_normal(b_g, 13, 0.3);
    fill_normal(b_p, 14, 0.2);
    for (auto* g : {&du_g, &du_p, &db_g, &db_p}) g->fill(Accum<U>(0.25));
  }
  double run(PenaltyForm form, double w, const Queue& queue = {}) {
    weight.fill(w);
    if (queue.device == Device::cpu) {
      OF_RUN(queue, orthogonality_features, arguments(form));
    } else {
      const WithScratch with(queue, gpu::orthogonality_features_scratch(rows, rank_g, rank_p));
      OF_RUN(with, orthogonality_features, arguments(form));
      finish(queue);
    }
    return value(0, 0);
  }
  OrthogonalityFeatures<U> arguments(PenaltyForm form) {
    return {.u_g = u_g.data(),
            .ld_g = u_g.ld(),
            .u_p = u_p.data(),
            .ld_p = u_p.ld(),
            .b_g = b_g.data(),
            .b_p = b_p.data(),
            .rows = rows,
            .out = out,
            .rank_g = rank_g,
            .rank_p = rank_p,
            .form = form,
            .weight = weight.data(),
            .du_g = du_g.data(),
            .ldd_g = du_g.ld(),
            .du_p = du_p.data(),
            .ldd_p = du_p.ld(),
            .db_g = db_g.data(),
            .db_p = db_p.data(),
            .value = value.data()};
  }
};

double dense(PenaltyForm form, const Tokens<double>& t) {
  return reference::Features{t.rows,
                             t.out,
                             t.rank_g,
                             t.rank_p,
                             t.u_g.to_double(),
                             t.u_p.to_double(),
                             t.b_g.to_double(),
                             t.b_p.to_double()}
      .mean(form);
}

struct FeatureShape {
  int64_t rows, out, rank_g, rank_p;
};
const std::vector<FeatureShape> feature_shapes = {
    {0, 3, 2, 2},    {1, 1, 1, 1},    {7, 5, 3, 2},    {31, 37, 8, 8}, {5, 67, 64, 3},
    {2047, 9, 4, 2}, {2048, 9, 4, 2}, {2049, 9, 2, 4}, {131, 9, 4, 5}, {70, 7, 64, 64},
};

TEST(OrthogonalityFeatures, values_equal_the_dense_formula) {
  for_each_isa([] {
    for (const FeatureShape& s : feature_shapes)
      for (PenaltyForm form : {PenaltyForm::cosine2, PenaltyForm::abs_cosine}) {
        Tokens<double> t(s.rows, s.out, s.rank_g, s.rank_p);
        const double want = dense(form, t), got = t.run(form, 0);
        EXPECT_TRUE(std::abs(got - want) <= 1e-12) << s.rows << ": " << got << " " << want;
      }
  });
}

TEST(OrthogonalityFeatures, gradients_equal_finite_differences_of_the_dense_formula) {
  const double weight = 1.3;
  for (const FeatureShape& s : {feature_shapes[2], FeatureShape{9, 4, 6, 3}})
    for (PenaltyForm form : {PenaltyForm::cosine2, PenaltyForm::abs_cosine}) {
      Tokens<double> t(s.rows, s.out, s.rank_g, s.rank_p);
      t.run(form, weight);
      const auto loss = [&] { return weight * dense(form, t); };
      const std::array<std::pair<Buffer<double>*, Buffer<double>*>, 4> pairs = {
          {{&t.u_g, &t.du_g}, {&t.u_p, &t.du_p}, {&t.b_g, &t.db_g}, {&t.b_p, &t.db_p}}};
      for (const auto& [x, gradient] : pairs) {
        Buffer<double> added = *gradient;
        for (int64_t r = 0; r < added.rows(); ++r)
          for (int64_t j = 0; j < added.cols(); ++j) added(r, j) -= 0.25;
        EXPECT_TRUE(check_gradient(loss, *x, added, 1e-8)) << s.rows << " rows";
      }
    }
}

template <class U>
void features_equal_double(const Queue& queue) {
  for (const FeatureShape& s : feature_shapes) {
    if (queue.device != Device::cpu && s.rows > 1000) continue;  // around a limit of the CPU's
    Tokens<U> t(s.rows, s.out, s.rank_g, s.rank_p);
    Tokens<double> d(s.rows, s.out, s.rank_g, s.rank_p);
    d.u_g = convert<double>(t.u_g), d.u_p = convert<double>(t.u_p);
    d.b_g = convert<double>(t.b_g), d.b_p = convert<double>(t.b_p);
    Tokens<U> again = t;
    const double value = t.run(PenaltyForm::cosine2, 1, queue);
    const double want = d.run(PenaltyForm::cosine2, 1);
    EXPECT_TRUE(std::abs(value - want) <= 1e-11 * want + 1e-15) << value << " " << want;
    EXPECT_EQ(again.run(PenaltyForm::cosine2, 1, queue), value);
    const auto same = [](const auto& got, const auto& again_got, const auto& reference) {
      EXPECT_TRUE(identical(got, again_got));
      double largest = 0;
      for (double v : reference.to_double()) largest = std::max(largest, std::abs(v));
      EXPECT_TRUE(close(got, reference.to_double(),
                        Budget{2 * epsilon<float>, 2 * epsilon<float> * largest}));
    };
    same(t.du_g, again.du_g, d.du_g);
    same(t.du_p, again.du_p, d.du_p);
    same(t.db_g, again.db_g, d.db_g);
    same(t.db_p, again.db_p, d.db_p);
    EXPECT_TRUE(t.u_g.verify() && t.u_p.verify());
  }
}

TEST(OrthogonalityFeatures, float_equals_double_up_to_the_last_rounding) {
  for_each_device<float>(features_equal_double<float>);
}

TEST(OrthogonalityFeatures, bf16_tokens_equal_double_up_to_the_last_rounding) {
  for_each_device<bf16>(features_equal_double<bf16>);
}

TEST(OrthogonalityFeatures, a_token_without_features_counts_as_zero) {
  Tokens<double> t(4, 5, 2, 2);
  for (int64_t j = 0; j < 2; ++j) t.u_g(1, j) = 0;
  const double want = dense(PenaltyForm::cosine2, t), got = t.run(PenaltyForm::cosine2, 1);
  EXPECT_TRUE(std::abs(got - want) <= 1e-14) << got << " " << want;
  for (int64_t j = 0; j < 2; ++j) EXPECT_EQ(t.du_g(1, j), 0.25);
  t.b_g.fill(0);
  EXPECT_EQ(t.run(PenaltyForm::cosine2, 1), 0);
}

TEST(OrthogonalityFeatures, gradients_that_nobody_wants_are_not_needed) {
  for_each_device<float>([](const Queue& queue) {
    Tokens<float> all(9, 5, 3, 2), some = all, none = all;
    const double value = all.run(PenaltyForm::abs_cosine, 1, queue);
    EXPECT_EQ(none.run(PenaltyForm::abs_cosine, 0, queue), value) << "weight 0";
    for (auto* g : {&none.du_g, &none.du_p, &none.db_g, &none.db_p})
      EXPECT_TRUE(close(*g, std::vector<double>(size_t(g->rows() * g->cols()), 0.25), Budget{}));
    const WithScratch with(queue, gpu::orthogonality_features_scratch(9, 3, 2));
    auto arguments = some.arguments(PenaltyForm::abs_cosine);
    arguments.weight = all.weight.data();
    arguments.du_g = arguments.db_g = nullptr;
    OF_RUN(with, orthogonality_features, arguments);
    finish(queue);
    EXPECT_EQ(some.value(0, 0), value);
    EXPECT_TRUE(identical(some.du_p, all.du_p));
    EXPECT_TRUE(identical(some.db_p, all.db_p));
  });
}

TEST(OrthogonalityFeatures, raw2_and_large_ranks_are_refused_and_NaN_is_not_hidden) {
  for_each_device<float>([](const Queue& queue) {
    EXPECT_THROW(Tokens<float>(3, 4, 2, 2).run(PenaltyForm::raw2, 0, queue), Error);
    EXPECT_THROW(Tokens<float>(3, 4, 65, 2).run(PenaltyForm::cosine2, 0, queue), Error);
    Tokens<float> t(3, 4, 2, 2);
    t.u_p(2, 1) = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isnan(t.run(PenaltyForm::cosine2, 0, queue)));
  });
}

TEST(OrthogonalityFeatures, and_all_other_penalties_allocate_nothing) {
  const Shape s{67, 71, 64, 64, 64};
  const Tensors<float> t(s);
  auto layer = t.layer();
  Gradients<float> g(s);
  g.attach(layer);
  const double weight = 1;
  double value = 0, norms2[2];
  const int64_t before = allocations;
  cpu::delta_norm2(DeltaNorm2<float>{.layers = &layer, .count = 1, .norms2 = norms2});
  for (const Case& c : cases) call(Queue{}, c, &layer, 1, &weight, &value);
  EXPECT_EQ(allocations - before, 0);
  EXPECT_TRUE(norms2[0] > 0 && value > 0);

  Tokens<bf16> tokens(33, 5, 8, 8);
  const int64_t before_features = allocations;
  tokens.run(PenaltyForm::cosine2, 1);
  EXPECT_EQ(allocations - before_features, 0);
}

}  // namespace
}  // namespace orthofed::test
