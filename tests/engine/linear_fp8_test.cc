// A frozen linear layer whose products are FP8, against the same layer in double: y and dx within
// what the errors of single numbers allow, gradients of adapters as without it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "engine/ops/linear.h"
#include "kernels/simt/memory.h"
#include "tests/support/graph.h"

namespace orthofed {
namespace {

using test::random_tensor;

[[maybe_unused]] const bool guarded = [] {
  simt::guard_memory();
  return true;
}();

constexpr double kFloat = 0x1p-23, kBf16 = 0x1p-7;

// On the CPU, on an emulated GPU that has FP8, and on a real one that does.
void for_each_place(const std::function<void()>& body) {
  {
    SCOPED_TRACE("cpu");
    const OnDevice scope(Device::cpu);
    body();
  }
  {
    SCOPED_TRACE("simt");
    Queue hopper;
    hopper.device = Device::simt;
    hopper.simt.capability = 90;
    const OnQueue queue(hopper);
    const OnDevice scope(Device::simt);
    body();
  }
  if (!available(Device::cuda)) return;
  SCOPED_TRACE("cuda");
  const OnDevice scope(Device::cuda);
  if (multiplies_fp8()) body();
}

// Odd sizes: rows end within packs, tiles and instructions.
constexpr int64_t kRows = 37, kIn = 83, kOut = 51, kRank = 3;
constexpr double kScale = 2;

Linear make_layer(bool adapters) {
  const auto here = [](const Shape& shape, uint64_t seed, double scale) {
    return random_tensor(shape, DType::f32, seed, scale);
  };
  Linear layer(Var(here({kOut, kIn}, 1, 0.1), false, "layer"), Var(here({kOut}, 2, 1), false, "b"),
               DType::bf16);
  if (adapters) {
    layer.adapters.add("layer", 0, kOut,
                       {"adapter", Var(here({kRank, kIn}, 3, 0.1), true, "A"),
                        Var(here({kOut, kRank}, 4, 0.1), true, "B"), kScale});
    layer.refresh_adapters();
  }
  return layer;
}

// A matrix in double, by (row, column).
struct Matrix {
  std::vector<double> values;
  int64_t rows, cols;
  explicit Matrix(const Tensor& t) : values(t.to_vector()), rows(t.rows()), cols(t.cols()) {}
  double operator()(int64_t i, int64_t j) const { return values[size_t(i * cols + j)]; }
};

// How far a number may be from what e4m3 with its row's scale makes of it (matmul_fp8.h).
std::vector<double> bounds(const std::vector<double>& values, int64_t rows, int64_t cols) {
  std::vector<double> bound(values.size());
  for (int64_t i = 0; i < rows; ++i) {
    double largest = 0;
    for (int64_t j = 0; j < cols; ++j)
      largest = std::max(largest, std::abs(values[size_t(i * cols + j)]));
    for (int64_t j = 0; j < cols; ++j) {
      const auto at = size_t(i * cols + j);
      bound[at] =
          std::max(0x1p-4 * std::abs(values[at]), 0x1p-10 * largest / 448) * (1 + 8 * kFloat);
    }
  }
  return bound;
}

// x [m, k] w [n, k]^T in double, and by how much the FP8 product may miss it, its rounding to bf16
// included.
struct Product {
  std::vector<double> value, allowed;
  Product(const Matrix& x, const Matrix& w) {
    const double dropped = queue().device == Device::cuda ? 132 * 0x1p-13 : 0;
    const std::vector<double> dx = bounds(x.values, x.rows, x.cols);
    const std::vector<double> dw = bounds(w.values, w.rows, w.cols);
    for (int64_t i = 0; i < x.rows; ++i)
      for (int64_t j = 0; j < w.rows; ++j) {
        double sum = 0, error = 0, size = 0;
        for (int64_t p = 0; p < x.cols; ++p) {
          const double u = std::abs(x(i, p)), v = std::abs(w(j, p));
          const double du = dx[size_t(i * x.cols + p)], dv = dw[size_t(j * x.cols + p)];
          sum += x(i, p) * w(j, p);
          error += du * v + u * dv + du * dv;
          size += (u + du) * (v + dv);
        }
        value.push_back(sum);
        allowed.push_back(error + (double(x.cols + 4) * kFloat + dropped) * size);
      }
  }
};

void expect_within(const Tensor& got, const std::vector<double>& want,
                   const std::vector<double>& allowed) {
  const std::vector<double> values = got.to_vector();
  ASSERT_EQ(values.size(), want.size());
  double missed = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::abs(values[i] - want[i]);
    ASSERT_TRUE(error <= allowed[i] + kBf16 / 2 * (std::abs(want[i]) + allowed[i]))
        << i << ": " << values[i] << ", want " << want[i] << " +- " << allowed[i];
    missed += error;
  }
  EXPECT_GT(missed, 0);  // it is not the exact product that was compared
}

TEST(LinearFp8, ForwardAndBackwardWithinTheBudget) {
  for_each_place([] {
    Linear layer = make_layer(false);
    layer.quantize();
    EXPECT_TRUE(layer.quantized());
    const Tensor x = random_tensor({kRows, kIn}, DType::f32, 5).to(DType::bf16);
    const Tensor dy = random_tensor({kRows, kOut}, DType::f32, 6, 1e-3).to(DType::bf16);
    x.row_range(4, 5).fill(0);                 // a token of nothing
    x.row_range(7, 8).columns(3, 4).fill(60);  // and one with an outlier
    Linear::Saved saved;
    const Tensor y = layer.forward(x, &saved);
    const Tensor dx = layer.backward(dy, saved, /*need_dx=*/true);

    const Matrix w(layer.weight.value());
    Product forward(Matrix(x), w);
    const std::vector<double> bias = layer.bias.value().to_vector();
    for (size_t i = 0; i < forward.value.size(); ++i) {
      forward.value[i] += bias[i % size_t(kOut)];
      forward.allowed[i] += kFloat * std::abs(bias[i % size_t(kOut)]);
    }
    expect_within(y, forward.value, forward.allowed);

    std::vector<double> turned(w.values.size());
    for (int64_t i = 0; i < kOut; ++i)
      for (int64_t j = 0; j < kIn; ++j) turned[size_t(j * kOut + i)] = w(i, j);
    const Product backward(Matrix(dy), Matrix(Tensor::of(turned, {kIn, kOut})));
    expect_within(dx, backward.value, backward.allowed);
  });
}

// The adapters' share of y and dx is added to what FP8 gives; their gradients come from x and dy
// alone, to the bit.
TEST(LinearFp8, AdaptersStayAsTheyAre) {
  for_each_place([] {
    const Tensor x = random_tensor({kRows, kIn}, DType::f32, 7).to(DType::bf16);
    const Tensor dy = random_tensor({kRows, kOut}, DType::f32, 8).to(DType::bf16);
    const auto run = [&](Linear& layer) {
      Linear::Saved saved;
      const Tensor y = layer.forward(x, &saved);
      return std::pair{y, layer.backward(dy, saved, true)};
    };
    Linear exact = make_layer(true), fp8 = make_layer(true), alone = make_layer(false);
    const auto [want_y, want_dx] = run(exact);
    fp8.quantize();
    alone.quantize();
    const auto [y, dx] = run(fp8);
    const auto [base_y, base_dx] = run(alone);
    const Adapter &adapter = fp8.adapters.slices()[0].adapters[0],
                  &same = exact.adapters.slices()[0].adapters[0];
    EXPECT_EQ(adapter.a.grad().to_vector(), same.a.grad().to_vector());
    EXPECT_EQ(adapter.b.grad().to_vector(), same.b.grad().to_vector());

    // y - base is s B A x, but for the roundings of u and of both y to bf16.
    const Matrix xs(x), a(adapter.a.value()), b(adapter.b.value());
    const Matrix got(y), base(base_y);
    for (int64_t i = 0; i < kRows; ++i)
      for (int64_t j = 0; j < kOut; ++j) {
        double share = 0, size = 0;
        for (int64_t r = 0; r < kRank; ++r) {
          double u = 0, sum = 0;
          for (int64_t p = 0; p < kIn; ++p) {
            u += xs(i, p) * a(r, p);
            sum += std::abs(xs(i, p) * a(r, p));
          }
          share += kScale * u * b(j, r);
          size += kScale * (std::abs(u) * kBf16 + sum * kIn * 0x1p-16) * std::abs(b(j, r));
        }
        ASSERT_TRUE(std::abs(got(i, j) - base(i, j) - share) <=
                    size + kBf16 * (std::abs(got(i, j)) + std::abs(base(i, j))))
            << i << ", " << j;
      }
    EXPECT_GT(test::relative_norm(dx, base_dx), 0.01);
    EXPECT_LT(test::relative_norm(dx, want_dx), 0.06);
    EXPECT_LT(test::relative_norm(y, want_y), 0.06);
  });
}

TEST(LinearFp8, WhatFollowsAProductFollowsThisOne) {
  for_each_place([] {
    Linear layer = make_layer(false);
    layer.quantize();
    const Tensor x = random_tensor({kRows, kIn}, DType::f32, 9).to(DType::bf16);
    const Tensor r = random_tensor({kRows, kOut}, DType::f32, 10);
    const Tensor y = layer.forward(x, nullptr);
    Tensor f;
    layer.forward_gelu(x, GeluKind::erf, nullptr, &f);
    EXPECT_EQ(f.to_vector(), y.to_vector());
    std::vector<double> sum = r.to_vector();
    const std::vector<double> product = y.to_vector();
    for (size_t i = 0; i < sum.size(); ++i) sum[i] = double(float(sum[i]) + float(product[i]));
    EXPECT_EQ(layer.forward_residual(x, r, Var(), nullptr, nullptr).to_vector(), sum);

    const Linear copy = layer;  // shares the quantised weights
    EXPECT_TRUE(copy.quantized());
    EXPECT_EQ(copy.forward(x, nullptr).to_vector(), product);
    layer.quantize();  // once is enough
    EXPECT_EQ(layer.forward(x, nullptr).to_vector(), product);
  });
}

TEST(LinearFp8, NaNShows) {
  for_each_place([] {
    Linear layer = make_layer(false);
    layer.quantize();
    const Tensor x = random_tensor({kRows, kIn}, DType::f32, 11).to(DType::bf16);
    x.row_range(5, 6).columns(80, 81).fill(NAN);
    const Tensor y = layer.forward(x, nullptr);
    EXPECT_FALSE(y.row_range(5, 6).all_finite());
    EXPECT_TRUE(y.row_range(0, 5).all_finite());
    EXPECT_TRUE(y.row_range(6, kRows).all_finite());
  });
}

TEST(LinearFp8, Refuses) {
  Linear f32(Var(random_tensor({4, 8}, DType::f32, 1)), Var(), DType::f32);
  EXPECT_THROW(f32.quantize(), Error);
  Linear trained(Var(random_tensor({4, 8}, DType::f32, 1), true, "w"), Var(), DType::bf16);
  EXPECT_THROW(trained.quantize(), Error);
  Linear merged = make_layer(true);
  merged.set_strategy(AdapterStrategy::merged);
  EXPECT_THROW(merged.quantize(), Error);
  merged.set_strategy(AdapterStrategy::unmerged);
  merged.quantize();
  EXPECT_THROW(merged.set_strategy(AdapterStrategy::merged), Error);

  EXPECT_TRUE(multiplies_fp8());
  const OnDevice scope(Device::simt);  // of compute capability 8.0
  EXPECT_FALSE(multiplies_fp8());
}

}  // namespace
}  // namespace orthofed
