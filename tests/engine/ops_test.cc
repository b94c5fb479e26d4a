// Every primitive op: gradients against finite differences in double, and only those that are
// needed.
#include <gtest/gtest.h>

#include <cmath>

#include "engine/ops/attention.h"
#include "engine/ops/cast.h"
#include "engine/ops/cross_entropy.h"
#include "engine/ops/gelu.h"
#include "engine/ops/layer_norm.h"
#include "engine/ops/linear.h"
#include "engine/ops/residual.h"
#include "engine/ops/rope.h"
#include "engine/ops/softmax.h"
#include "engine/ops/swiglu.h"
#include "engine/ops/tokens.h"
#include "tests/support/graph.h"

namespace orthofed {
namespace {

using namespace std::string_literals;
using test::gradients_agree;
using test::random_tensor;

Var leaf(const Shape& shape, uint64_t seed, double scale = 1) {
  return Var(random_tensor(shape, DType::f64, seed, scale), true, "leaf");
}

TEST(Ops, LayerNorm) {
  const Var x = leaf({5, 7}, 1), gamma = leaf({7}, 2), beta = leaf({7}, 3);
  EXPECT_TRUE(gradients_agree(
      [&](Tape& t) { return layer_norm(t, x, gamma, beta, 1e-6, DType::f64); }, {x, gamma, beta}));
}

TEST(Ops, Gelu) {
  for (GeluKind kind : {GeluKind::erf, GeluKind::tanh, GeluKind::quick}) {
    const Var x = leaf({3, 11}, 4, 2);
    EXPECT_TRUE(gradients_agree([&](Tape& t) { return gelu(t, x, kind); }, {x}));
  }
}

TEST(Ops, Softmax) {
  const Var x = leaf({4, 6}, 5, 2);
  EXPECT_TRUE(gradients_agree([&](Tape& t) { return softmax(t, x); }, {x}));
}

TEST(Ops, Attention) {
  const Var qkv = leaf({2 * 5, 3 * 6}, 6);  // 2 images, 5 tokens, 2 heads of 3
  EXPECT_TRUE(gradients_agree([&](Tape& t) { return attention(t, qkv, 2, 2); }, {qkv}));
}

TEST(Ops, Swiglu) {
  const Var x = leaf({3, 10}, 18);
  EXPECT_TRUE(gradients_agree([&](Tape& t) { return swiglu(t, x); }, {x}));
}

TEST(Ops, Rope) {
  const Var qkv = leaf({2 * 5, 3 * 8}, 19);  // 2 images, 2 tokens and 3 patches, 2 heads of 4
  std::vector<double> cos, sin;
  for (int i = 0; i < 6; ++i) {
    cos.push_back(std::cos(i - 2.5));
    sin.push_back(std::sin(i - 2.5));
  }
  const Rotation r{Tensor::of(cos, {3, 2}), Tensor::of(sin, {3, 2}), 2};
  EXPECT_TRUE(gradients_agree([&](Tape& t) { return rope(t, qkv, r, 2, 2); }, {qkv}));
}

TEST(Ops, Cast) {
  const Var x(test::random_tensor({3, 5}, DType::f32, 20), true, "x");
  Tape tape;
  const Var y = cast(tape, x, DType::f64);
  EXPECT_EQ(y.value().to_vector(), x.value().to_vector());
  const Var loss(Tensor::full({1}, DType::f32, 0), true);
  const Tensor dy = test::random_tensor({3, 5}, DType::f32, 21);
  tape.record({loss}, [y, dy] { y.give_grad(dy.to(DType::f64)); });
  tape.backward(loss);
  EXPECT_EQ(x.grad().to_vector(), dy.to_vector());
  EXPECT_EQ(&cast(tape, x, DType::f32).value(), &x.value());
}

TEST(Ops, Residual) {
  const Var x = leaf({4, 5}, 7), z = leaf({4, 5}, 8), gamma = leaf({5}, 9);
  EXPECT_TRUE(gradients_agree([&](Tape& t) { return residual(t, x, z, gamma); }, {x, z, gamma}));
  EXPECT_TRUE(gradients_agree([&](Tape& t) { return residual(t, x, z, Var()); }, {x, z}));
}

TEST(Ops, Tokens) {
  const Var z = leaf({2 * 4, 4}, 10), cls = leaf({4}, 11), pos = leaf({5, 4}, 12);
  EXPECT_TRUE(
      gradients_agree([&](Tape& t) { return patch_embed(t, z, cls, pos, 2); }, {z, cls, pos}));
  const Var pos4 = leaf({4, 4}, 13);
  EXPECT_TRUE(
      gradients_agree([&](Tape& t) { return patch_embed(t, z, Var(), pos4, 2); }, {z, pos4}));
  const Var two = leaf({2, 4}, 15), pos6 = leaf({6, 4}, 16);
  EXPECT_TRUE(
      gradients_agree([&](Tape& t) { return patch_embed(t, z, two, pos6, 2); }, {z, two, pos6}));
  const Var wide = leaf({2, 3}, 17);
  EXPECT_TRUE(gradients_agree([&](Tape& t) { return side_by_side(t, two, wide); }, {two, wide}));
  const Var x = leaf({2 * 5, 3}, 14);
  EXPECT_TRUE(gradients_agree([&](Tape& t) { return select_token(t, x, 2, 1); }, {x}));
  EXPECT_TRUE(gradients_agree([&](Tape& t) { return mean_tokens(t, x, 2, 1); }, {x}));
}

TEST(Ops, CrossEntropy) {
  const Var z = leaf({5, 4}, 15, 2);
  const Tensor labels = Tensor::of(std::vector<int32_t>{0, 3, 1, 2, 1}, {5});
  const Tensor weights = Tensor::of(std::vector<double>{1, 1, 0, 1, 1}, {5});
  const Tensor class_weights = Tensor::of(std::vector<double>{1, 2, .5, 3}, {4});
  const Tensor prior = Tensor::of(std::vector<double>{-1, -2, -.5, -3}, {4});
  for (CrossEntropyOptions options : {CrossEntropyOptions{},
                                      {.label_smoothing = .1},
                                      {.focal = 2},
                                      {.label_smoothing = .1, .focal = 1}}) {
    EXPECT_TRUE(gradients_agree(
        [&](Tape& t) {
          return cross_entropy(t, z, labels, weights, class_weights, prior, options);
        },
        {z}));
  }
  // Padding contributes exactly nothing.
  Tape tape;
  tape.backward(cross_entropy(tape, z, labels, weights, {}, {}, {}));
  for (int c = 0; c < 4; ++c) EXPECT_EQ(z.grad().row<double>(2)[c], 0.0);
}

// Two adapters on each of two slices, with a trainable base.
Linear adapted_linear() {
  Linear layer(leaf({6, 5}, 20), leaf({6}, 21), DType::f64);
  for (int s = 0; s < 2; ++s) {
    const std::string slice = "s" + std::to_string(s);
    const uint64_t seed = 30 + uint64_t(s) * 10;
    layer.adapters.add(slice, s * 3, 3, {"g", leaf({2, 5}, seed), leaf({3, 2}, seed + 1), 0.7});
    layer.adapters.add(slice, s * 3, 3, {"p", leaf({3, 5}, seed + 2), leaf({3, 3}, seed + 3), 1.3});
  }
  layer.refresh_adapters();
  return layer;
}

std::vector<Var> parameters(const Linear& layer) {
  std::vector<Var> all = {layer.weight, layer.bias};
  for (const AdapterSlice& s : layer.adapters.slices())
    for (const Adapter& a : s.adapters) {
      all.push_back(a.a);
      all.push_back(a.b);
    }
  return all;
}

TEST(Linear, GradientsOfBaseAndAdapters) {
  Linear layer = adapted_linear();
  const Var x = leaf({4, 5}, 22);
  std::vector<Var> inputs = parameters(layer);
  inputs.push_back(x);
  EXPECT_TRUE(gradients_agree(
      [&](Tape& t) {
        layer.refresh_adapters();
        return linear(t, layer, x);
      },
      inputs));
}

TEST(Linear, MergedEqualsUnmerged) {
  Linear layer = adapted_linear();
  const Var x = leaf({4, 5}, 22);
  Tape tape(false);
  const Tensor apart = linear(tape, layer, x).value();
  const Tensor before = layer.weight.value().clone();
  layer.set_strategy(AdapterStrategy::merged);
  EXPECT_LE(test::relative_norm(linear(tape, layer, x).value(), apart), 1e-14);
  // A merge holds until the next one, which takes the adapters as they are then.
  const Tensor b = layer.adapters.slices()[0].find("g")->b.value();
  b.fill(0);
  EXPECT_LE(test::relative_norm(linear(tape, layer, x).value(), apart), 1e-14);
  layer.refresh_adapters();
  EXPECT_GE(test::relative_norm(linear(tape, layer, x).value(), apart), 1e-3);
  const Tensor without = linear(tape, layer, x).value();
  layer.set_strategy(AdapterStrategy::unmerged);
  EXPECT_LE(test::relative_norm(linear(tape, layer, x).value(), without), 1e-14);
  EXPECT_EQ(layer.weight.value().to_vector(), before.to_vector());
}

TEST(Linear, MergedEqualsUnmergedInEveryComputeType) {
  for (DType compute : {DType::f32, DType::bf16}) {
    Linear layer(Var(random_tensor({48, 33}, DType::f32, 1, .2)),
                 Var(random_tensor({48}, DType::f32, 2)), compute);
    layer.adapters.add("s", 0, 48,
                       {"a", Var(random_tensor({8, 33}, DType::f32, 3, .2)),
                        Var(random_tensor({48, 8}, DType::f32, 4, .2)), 2});
    layer.refresh_adapters();
    const Var x(random_tensor({19, 33}, DType::f32, 5).to(compute));
    Tape tape(false);
    const Tensor apart = linear(tape, layer, x).value();
    layer.set_strategy(AdapterStrategy::merged);
    // 33 products: fp32 rounds each sum, bf16 rounds operands and result (2^-8 each).
    EXPECT_LE(test::relative_norm(linear(tape, layer, x).value(), apart),
              compute == DType::f32 ? 1e-6 : 2e-2);
  }
}

// q, k and v parts of 48 rows, so that tiles of 128 cross them; k has one adapter, v none.
Linear adapted_qkv(DType compute) {
  const DType sums = accum(compute);
  Linear layer(Var(random_tensor({144, 72}, sums, 1, .2)), Var(random_tensor({144}, sums, 2)),
               compute);
  uint64_t seed = 3;
  const auto add = [&](int64_t q, const char* name, int64_t rank) {
    layer.adapters.add("qkv"s.substr(size_t(q), 1), q * 48, 48,
                       {name, Var(random_tensor({rank, 72}, sums, seed, .2), true),
                        Var(random_tensor({48, rank}, sums, seed + 1, .2), true), 1.5});
    seed += 2;
  };
  add(0, "g", 8);
  add(0, "p", 5);
  add(1, "g", 8);
  layer.refresh_adapters();
  return layer;
}

// Adds u to du, as the gradient of |u|^2 / 2 does.
class Pull : public SliceObserver {
 public:
  void backward(const AdapterSlice&, const Tensor& u, const Tensor& du) override { du.add(u); }
  bool adds_to_du() const override { return true; }
};

struct Passes {
  std::vector<double> y, dx, u;
  std::vector<std::vector<double>> gradients;  // of the adapters
};

Passes both_passes(const Linear& layer, const Tensor& x, const Tensor& dy,
                   SliceObserver* observer = nullptr) {
  const auto each_adapter = [&](const auto& f) {
    for (const AdapterSlice& s : layer.adapters.slices())
      for (const Adapter& a : s.adapters)
        if (a.active) f(a);
  };
  each_adapter([](const Adapter& a) { a.a.drop_grad(), a.b.drop_grad(); });
  Linear::Saved saved;
  Passes p;
  p.y = layer.forward(x, &saved).to_vector();
  p.dx = layer.backward(dy, saved, /*need_dx=*/true, observer).to_vector();
  if (saved.u.defined()) p.u = saved.u.to_vector();
  each_adapter([&](const Adapter& a) {
    p.gradients.push_back(a.a.grad().to_vector());
    p.gradients.push_back(a.b.grad().to_vector());
  });
  return p;
}

// [m, k] [k, n] in double
std::vector<double> product(const std::vector<double>& a, const std::vector<double>& b, size_t k,
                            bool absolute) {
  const size_t m = a.size() / k, n = b.size() / k;
  std::vector<double> c(m * n);
  for (size_t i = 0; i < m; ++i)
    for (size_t r = 0; r < k; ++r)
      for (size_t j = 0; j < n; ++j) {
        const double term = a[i * k + r] * b[r * n + j];
        c[i * n + j] += absolute ? std::abs(term) : term;
      }
  return c;
}
std::vector<double> transposed(const std::vector<double>& a, size_t cols) {
  std::vector<double> t(a.size());
  const size_t rows = a.size() / cols;
  for (size_t i = 0; i < a.size(); ++i) t[i % cols * rows + i / cols] = a[i];
  return t;
}

// In bf16 on a GPU the adapters are a tail of the product; on the CPU, and in float, unmerged.
TEST(Linear, ExtendedEqualsUnmerged) {
  for (const Device device : {Device::cpu, Device::simt, Device::cuda}) {
    if (!available(device)) continue;
    for (const DType compute : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(std::string(name_of(device)) + ' ' + name_of(compute));
      const OnDevice scope(device);
      Linear layer = adapted_qkv(compute);
      const Tensor x = random_tensor({37, 72}, DType::f32, 20).to(compute),
                   dy = random_tensor({37, 144}, DType::f32, 21).to(compute);
      Pull pull;
      const Passes apart = both_passes(layer, x, dy), pulled = both_passes(layer, x, dy, &pull);
      layer.set_strategy(AdapterStrategy::extended);
      const Passes tail = both_passes(layer, x, dy), pulled_tail = both_passes(layer, x, dy, &pull);
      // x, dy, u and du are the same, so are the adapters' gradients.
      EXPECT_EQ(tail.gradients, apart.gradients);
      EXPECT_EQ(pulled_tail.gradients, pulled.gradients);
      EXPECT_EQ(tail.u, apart.u);
      if (device == Device::cpu || compute == DType::f32) {
        EXPECT_EQ(tail.y, apart.y);
        EXPECT_EQ(tail.dx, apart.dx);
        EXPECT_EQ(pulled_tail.dx, pulled.dx);
        continue;
      }
      EXPECT_NE(tail.y, apart.y);
      EXPECT_NE(tail.dx, apart.dx);

      // s B [R, 144], a block for each slice, and A [R, 72].
      std::vector<double> sb, a;
      for (const AdapterSlice& s : layer.adapters.slices())
        for (const Adapter& adapter : s.adapters) {
          const size_t rank = size_t(adapter.rank()), row = sb.size();
          sb.resize(row + rank * 144);
          const auto b = adapter.b.value().to_vector(), more = adapter.a.value().to_vector();
          for (size_t i = 0; i < b.size(); ++i)
            sb[row + i % rank * 144 + size_t(s.begin) + i / rank] = adapter.scale * b[i];
          a.insert(a.end(), more.begin(), more.end());
        }
      const size_t rank = a.size() / 72;
      const auto du = product(dy.to_vector(), transposed(sb, 144), 144, false);  // [37, R]
      const auto y_terms = product(tail.u, sb, rank, true), dx_terms = product(du, a, rank, true);
      for (AdapterSlice& s : layer.adapters.slices())
        for (Adapter& adapter : s.adapters) adapter.active = false;
      layer.refresh_adapters();
      const Passes base = both_passes(layer, x, dy);
      // A rounding to bf16 errs by 2^-8 at most: here of s B (A) and of the sum, there of the
      // product and of the sum. What is left are fp32's sums.
      const auto agree = [](const std::vector<double>& got, const std::vector<double>& want,
                            const std::vector<double>& frozen, const std::vector<double>& terms) {
        ASSERT_EQ(got.size(), terms.size());
        for (size_t i = 0; i < got.size(); ++i)
          ASSERT_TRUE(
              std::abs(got[i] - want[i]) <=
              0x1p-8 * (terms[i] + std::abs(got[i]) + std::abs(frozen[i]) + std::abs(want[i])) +
                  1e-4 * (1 + terms[i]))
              << i << ": " << got[i] << " and " << want[i];
      };
      agree(tail.y, apart.y, base.y, y_terms);
      agree(tail.dx, apart.dx, base.dx, dx_terms);

      // What the observer adds goes through x as well, which is no rounding error.
      const auto distance = [](const std::vector<double>& p, const std::vector<double>& q) {
        double sum = 0;
        for (size_t i = 0; i < p.size(); ++i) sum += (p[i] - q[i]) * (p[i] - q[i]);
        return std::sqrt(sum);
      };
      EXPECT_LE(distance(pulled_tail.dx, pulled.dx), 0.1 * distance(pulled.dx, apart.dx));
    }
  }
}

TEST(Linear, InactiveAdapterIsAbsent) {
  Linear layer = adapted_linear();
  const Var x = leaf({4, 5}, 22);
  for (AdapterSlice& s : layer.adapters.slices()) s.find("p")->active = false;
  layer.refresh_adapters();
  Tape tape(false);
  const Tensor off = linear(tape, layer, x).value();
  for (AdapterSlice& s : layer.adapters.slices()) {
    s.find("p")->active = true;
    s.find("p")->b.value().fill(0);
  }
  layer.refresh_adapters();
  EXPECT_LE(test::relative_norm(linear(tape, layer, x).value(), off), 1e-14);
}

TEST(Tape, ComputesOnlyWhatIsNeeded) {
  Linear layer(Var(random_tensor({6, 5}, DType::f64, 1)), Var(random_tensor({6}, DType::f64, 2)),
               DType::f64);
  const Var x(random_tensor({4, 5}, DType::f64, 3));
  Tape tape;
  const Var frozen = linear(tape, layer, x);  // nothing trains: no node
  EXPECT_FALSE(frozen.requires_grad());
  layer.adapters.add("s", 0, 6, {"a", leaf({2, 5}, 4), leaf({6, 2}, 5), 1});
  layer.refresh_adapters();
  const Var y = linear(tape, layer, x);
  EXPECT_TRUE(y.requires_grad());
  tape.backward(test::weighted_sum(tape, y, random_tensor({4, 6}, DType::f64, 6)));
  EXPECT_TRUE(layer.adapters.slices()[0].adapters[0].a.has_grad());
  EXPECT_FALSE(layer.weight.has_grad());
  EXPECT_FALSE(x.has_grad());
}

TEST(Tape, GradientsAddUpWhereAValueIsUsedTwice) {
  const Var x = leaf({2, 3}, 1);
  EXPECT_TRUE(gradients_agree(
      [&](Tape& t) { return residual(t, x, softmax(t, gelu(t, x, GeluKind::erf)), Var()); }, {x}));
}

TEST(Tape, AWrongGradientIsCaught) {
  // The checker must be able to fail: an op that forgets a factor of two.
  const Var x = leaf({2, 3}, 1);
  EXPECT_FALSE(gradients_agree(
      [&](Tape& t) {
        const Tensor doubled = x.value().clone();
        doubled.add(x.value());
        const Var y = t.output(doubled, t.needs({&x}));
        t.record({y}, [x, y] { x.give_grad(y.grad().clone()); });
        return y;
      },
      {x}));
}

}  // namespace
}  // namespace orthofed
