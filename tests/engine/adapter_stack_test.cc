// Any number of adapters on one layer: they equal their composition from primitives, those that are
// off are not there, and a forward copies nothing.
#include "engine/ops/adapter_stack.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/ops/linear.h"
#include "engine/ops/residual.h"
#include "engine/tensor/allocator.h"
#include "kernels/simt/memory.h"
#include "tests/support/graph.h"

namespace orthofed {
namespace {

using test::random_tensor;

[[maybe_unused]] const bool guarded = [] {
  simt::guard_memory();
  return true;
}();

constexpr int64_t kIn = 20, kPart = 16, kOut = 3 * kPart, kTokens = 9;
const std::vector<std::string> kNames = {"a", "b", "c"};
const std::vector<int64_t> kRanks = {2, 5, 3};
const std::vector<double> kScales = {1.5, 0.5, 2};

// A frozen fused qkv with some of three adapters on q, k and v, or on v alone ("b").
Linear make_layer(DType compute, const std::vector<std::string>& names = kNames) {
  const DType sums = accum(compute);
  Linear layer(Var(random_tensor({kOut, kIn}, sums, 1, 0.3), false, "qkv"),
               Var(random_tensor({kOut}, sums, 2)), compute);
  for (const int64_t part : {2, 0, 1})
    for (const std::string& name : names) {
      if (name == "b" && part != 2) continue;
      const auto n = size_t(std::find(kNames.begin(), kNames.end(), name) - kNames.begin());
      const uint64_t seed = 10 + 20 * uint64_t(part) + 2 * n;
      layer.adapters.add(
          "part" + std::to_string(part), part * kPart, kPart,
          {name, Var(random_tensor({kRanks[n], kIn}, sums, seed, 0.3), true, name + ".a"),
           Var(random_tensor({kPart, kRanks[n]}, sums, seed + 1, 0.3), true, name + ".b"),
           kScales[n]});
    }
  layer.refresh_adapters();
  return layer;
}

std::vector<Var> parameters(const Linear& layer) {
  std::vector<Var> all;
  for (const AdapterSlice& s : layer.adapters.slices())
    for (const Adapter& a : s.adapters)
      if (a.active) all.insert(all.end(), {a.a, a.b});
  return all;
}

// Everything that a forward and a backward give.
std::vector<std::vector<double>> both_passes(const Linear& layer, DType compute) {
  const Tensor x = random_tensor({kTokens, kIn}, DType::f32, 5).to(compute),
               dy = random_tensor({kTokens, kOut}, DType::f32, 6).to(compute);
  for (const Var& v : parameters(layer)) v.drop_grad();
  Linear::Saved saved;
  std::vector<std::vector<double>> all = {layer.forward(x, &saved).to_vector()};
  all.push_back(layer.backward(dy, saved, /*need_dx=*/true).to_vector());
  for (const Var& v : parameters(layer)) all.push_back(v.grad().to_vector());
  return all;
}

// y + sum of (s B) (A x), each adapter by products of its own: A as a layer, and s B, with zero rows
// outside of its slice, as another one.
Var composed(Tape& tape, const Linear& layer, const Var& x, std::vector<Linear>& keep) {
  keep.clear();
  keep.reserve(20);
  keep.emplace_back(layer.weight, layer.bias, DType::f64);
  Var y = linear(tape, keep.back(), x);
  for (const AdapterSlice& s : layer.adapters.slices())
    for (const Adapter& a : s.adapters) {
      const Tensor wide = Tensor::zeros({kOut, a.rank()}, DType::f64);
      for (int64_t i = 0; i < s.rows; ++i)
        for (int64_t j = 0; j < a.rank(); ++j)
          wide.row<double>(s.begin + i)[j] = a.scale * a.b.value().row<double>(i)[j];
      keep.emplace_back(Var(a.a.value(), true, "A"), Var(), DType::f64);
      const Var u = linear(tape, keep.back(), x);
      keep.emplace_back(Var(wide, true, "s B"), Var(), DType::f64);
      y = residual(tape, y, linear(tape, keep.back(), u), Var());
    }
  return y;
}

void expect_near(const Tensor& got, const Tensor& want, double scale, const std::string& what) {
  const std::vector<double> g = got.to_vector(), w = want.to_vector();
  ASSERT_EQ(g.size(), w.size()) << what;
  for (size_t i = 0; i < g.size(); ++i)
    ASSERT_TRUE(std::abs(g[i] - scale * w[i]) <= 1e-13 * (1 + std::abs(w[i]))) << what << " " << i;
}

TEST(AdapterStack, ThreeAdaptersEqualTheirComposition) {
  const Linear layer = make_layer(DType::f64);
  const Var x(random_tensor({kTokens, kIn}, DType::f64, 5), true, "x"),
      same_x(x.value().clone(), true, "x");
  const Tensor weight = random_tensor({kTokens, kOut}, DType::f64, 6);
  Tape tape;
  const Var y = linear(tape, layer, x);
  std::vector<Linear> keep;
  const Var want = composed(tape, layer, same_x, keep);
  expect_near(y.value(), want.value(), 1, "y");
  tape.backward(residual(tape, test::weighted_sum(tape, y, weight),
                         test::weighted_sum(tape, want, weight), Var()));
  expect_near(x.grad(), same_x.grad(), 1, "dx");
  size_t k = 1;
  for (const AdapterSlice& s : layer.adapters.slices())
    for (const Adapter& a : s.adapters) {
      expect_near(a.a.grad(), keep[k++].weight.grad(), 1, s.name + a.name + " dA");
      const Tensor wide = keep[k++].weight.grad();
      expect_near(a.b.grad(), wide.row_range(s.begin, s.begin + s.rows), a.scale,
                  s.name + a.name + " dB");
    }
}

TEST(AdapterStack, GradientsAgreeWithFiniteDifferences) {
  Linear layer = make_layer(DType::f64);
  const Var x(random_tensor({kTokens, kIn}, DType::f64, 5), true, "x");
  std::vector<Var> inputs = parameters(layer);
  ASSERT_EQ(inputs.size(), 14u);
  inputs.push_back(x);
  EXPECT_TRUE(test::gradients_agree(
      [&](Tape& t) {
        layer.refresh_adapters();
        return linear(t, layer, x);
      },
      inputs));
}

// On every device, in every strategy: the same bits as of a layer that never had the others.
TEST(AdapterStack, AnAdapterThatIsOffIsNotThere) {
  for (const Device device : {Device::cpu, Device::simt, Device::cuda}) {
    if (!available(device)) continue;
    const OnDevice scope(device);
    for (const DType compute : {DType::f32, DType::bf16})
      for (const AdapterStrategy strategy :
           {AdapterStrategy::unmerged, AdapterStrategy::extended, AdapterStrategy::merged}) {
        Linear layer = make_layer(compute);
        layer.set_strategy(strategy);
        const auto whole = both_passes(layer, compute);
        for (const std::vector<std::string>& names :
             {std::vector<std::string>{"a"}, {"b"}, {"c"}, {"a", "b"}, {"b", "c"}, {"a", "c"}}) {
          SCOPED_TRACE(std::string(name_of(device)) + ' ' + name_of(compute) + " strategy " +
                       std::to_string(int(strategy)) + " " + names.front() + names.back());
          Linear alone = make_layer(compute, names);
          alone.set_strategy(strategy);
          for (AdapterSlice& s : layer.adapters.slices())
            for (Adapter& a : s.adapters)
              a.active = std::find(names.begin(), names.end(), a.name) != names.end();
          EXPECT_THROW(both_passes(layer, compute), Error);  // the products are with all three
          layer.refresh_adapters();
          EXPECT_EQ(both_passes(layer, compute), both_passes(alone, compute));
        }
        for (AdapterSlice& s : layer.adapters.slices())
          for (Adapter& a : s.adapters) a.active = true;
        layer.refresh_adapters();
        EXPECT_EQ(both_passes(layer, compute), whole);
      }
  }
}

TEST(AdapterStack, TheOrderOfAddingDoesNotMatter) {
  const Linear layer = make_layer(DType::f32), other = make_layer(DType::f32, {"c", "a", "b"});
  EXPECT_EQ(both_passes(layer, DType::f32), both_passes(other, DType::f32));
  const AdapterSlice& slice = other.adapters.slices()[0];
  EXPECT_EQ(slice.name, "part2");
  for (size_t i = 0; i < kNames.size(); ++i) {
    EXPECT_EQ(slice.adapters[i].name, kNames[i]);
    EXPECT_EQ(&slice.adapters[i], slice.find(kNames[i]));
  }
  EXPECT_EQ(slice.find("d"), nullptr);
  Linear twice = make_layer(DType::f32);
  EXPECT_THROW(twice.adapters.add("part0", 0, kPart, slice.adapters[0]), Error);
  EXPECT_THROW(twice.adapters.add("part3", 0, kPart + 1, slice.adapters[0]), Error);
}

// A of all adapters is one tensor, and neither pass makes another one, of A or of B.
TEST(AdapterStack, NothingIsStackedInAForward) {
  Linear layer = make_layer(DType::f64);
  const double* row = nullptr;
  for (const AdapterSlice& s : layer.adapters.slices())
    for (const Adapter& a : s.adapters) {
      EXPECT_TRUE(row == nullptr || row == a.a.value().row<double>(0));
      row = a.a.value().row<double>(a.rank());
    }
  const Tensor x = random_tensor({kTokens, kIn}, DType::f64, 5);
  const auto most = [](const auto& body) {
    reset_peak(Device::cpu);
    const int64_t before = allocator_stats(Device::cpu).bytes_in_use;
    body();
    return allocator_stats(Device::cpu).peak_bytes_in_use - before;
  };
  const int64_t u_and_y = most([&] {
    const Tensor u = Tensor::empty({kTokens, layer.adapters.active_rank()}, DType::f64),
                 y = Tensor::empty({kTokens, kOut}, DType::f64);
  });
  EXPECT_EQ(most([&] { layer.forward(x, nullptr); }), u_and_y);
  EXPECT_EQ(most([&] { layer.refresh_adapters(); }), 0);
  for (AdapterSlice& s : layer.adapters.slices()) s.find("a")->active = false;
  layer.refresh_adapters();  // the first time makes room for this choice
  EXPECT_EQ(most([&] { layer.refresh_adapters(); }), 0);
}

}  // namespace
}  // namespace orthofed
