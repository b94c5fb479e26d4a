#include "kernels/matmul/matmul.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/parallel.h"
#include "tests/support/buffer.h"
#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/random.h"

namespace orthofed {
namespace {

using namespace orthofed::test;

struct Case {
  int64_t m, n, k;
  Op op_a = Op::none, op_b = Op::none;
  bool bias = false, accumulate = false;
  int64_t padding = 0;  // of every row

  std::string name() const {
    return std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k) +
           (op_a == Op::transpose ? " A^T" : "") + (op_b == Op::transpose ? " B^T" : "") +
           (bias ? " +bias" : "") + (accumulate ? " +C" : "") + " padding " +
           std::to_string(padding);
  }
};

// Every option at sizes around the blocks of the loop (tile 6 x 16, blocks 96 x 96 x 128), then the
// skinny products of LoRA.
std::vector<Case> cases() {
  std::vector<Case> list;
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{1, 1, 1},
                                {7, 17, 5},
                                {5, 33, 129},
                                {12, 64, 128},
                                {101, 97, 131},
                                {13, 1, 257},
                                {1, 19, 64}}) {
    for (int options = 0; options < 16; ++options) {
      list.push_back({m, n, k, options & 1 ? Op::transpose : Op::none,
                      options & 2 ? Op::transpose : Op::none, (options & 4) != 0,
                      (options & 8) != 0, options % 3 == 0 ? 0 : 3});
    }
  }
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{0, 5, 3}, {5, 0, 3}, {5, 3, 0}}) {
    list.push_back({m, n, k, Op::none, Op::none, true, false, 1});
    list.push_back({m, n, k, Op::transpose, Op::transpose, false, true, 1});
  }
  list.push_back({394, 16, 192, Op::none, Op::transpose});
  list.push_back({394, 192, 16, Op::none, Op::transpose, false, true});
  list.push_back({16, 192, 394, Op::transpose, Op::none, false, true, 5});
  return list;
}

// The same for the GPU's kernels, whose tiles are 16, 64 and 128 wide and end in steps of 8, 16 and
// 32 along k; small, because the emulator runs them. Rows that are a multiple of 16 bytes apart are
// read in packs, others are not.
std::vector<Case> gpu_cases() {
  std::vector<Case> list;
  const auto add = [&](const std::array<int64_t, 3>& size, int options, int64_t padding) {
    list.push_back({size[0], size[1], size[2], options & 1 ? Op::transpose : Op::none,
                    options & 2 ? Op::transpose : Op::none, (options & 4) != 0, (options & 8) != 0,
                    padding});
  };
  for (int options = 0; options < 16; ++options) {
    add({1, 1, 1}, options, 0);
    add({7, 17, 5}, options, 3);
    add({17, 20, 41}, options, options % 3);
    add({24, 40, 64}, options, options % 2 * 8);
  }
  for (const int options : {0, 3, 5, 10}) {
    add({129, 67, 34}, options, 1);
    add({65, 131, 9}, options, 0);
    add({64, 128, 96}, options, 8);
    add({16, 136, 200}, options, 0);
    add({0, 5, 3}, options, 1);
    add({5, 0, 3}, options, 1);
    add({5, 3, 0}, options, 1);
  }
  return list;
}

template <class T, class C, class B = T>
struct Operands {
  Buffer<T> a;
  Buffer<B> b;
  Buffer<Accum<T>> bias;
  Buffer<C> c;
  MatmulShape shape;

  explicit Operands(const Case& t)
      : a(t.op_a == Op::none ? t.m : t.k, t.op_a == Op::none ? t.k : t.m, t.padding),
        b(t.op_b == Op::none ? t.k : t.n, t.op_b == Op::none ? t.n : t.k, t.padding),
        bias(1, t.n),
        c(t.m, t.n, t.padding) {
    fill_normal(a, 1);
    fill_normal(b, 2);
    fill_normal(bias, 3);
    if (t.accumulate) fill_normal(c, 4);
    shape = {t.m, t.n, t.k, a.ld(), b.ld(), c.ld(), t.op_a, t.op_b};
  }
};

// The product in double, and sum |a b| with it.
struct Reference {
  std::vector<double> want, size;  // [m, n]

  template <class T, class C, class B>
  Reference(const Operands<T, C, B>& in, const Case& t) {
    for (int64_t i = 0; i < t.m; ++i) {
      for (int64_t j = 0; j < t.n; ++j) {
        double sum = 0, magnitude = 0;
        const auto add = [&](double v) {
          sum += v;
          magnitude += std::abs(v);
        };
        for (int64_t p = 0; p < t.k; ++p) {
          const double x = t.op_a == Op::none ? in.a(i, p) : in.a(p, i);
          const double y = t.op_b == Op::none ? in.b(p, j) : in.b(j, p);
          add(x * y);
        }
        if (t.bias) add(in.bias(0, j));
        if (t.accumulate) add(in.c(i, j));
        want.push_back(sum);
        size.push_back(magnitude);
      }
    }
  }
};

// The error that a product may have: a sum of k products in any order errs by at most
// k * eps/2 * sum |a b| (Higham, Accuracy and Stability, 3.1), and C is rounded once.
template <class T, class C>
testing::AssertionResult check(const Reference& reference, const Case& t, const Buffer<C>& out) {
  const double sums = 0.5 * epsilon<Accum<T>> * double(t.k + 2);
  return close(out, reference.want, [&](int64_t i, int64_t j) -> double {
    const auto at = size_t(i * t.n + j);
    // The reference itself sums in double: twice the bound for T = double.
    return (std::is_same_v<T, double> ? 2 : 1) * sums * reference.size[at] +
           0.5 * epsilon<C> * (std::abs(reference.want[at]) + sums * reference.size[at]);
  });
}
template <class T, class C, class B>
testing::AssertionResult check(const Operands<T, C, B>& in, const Case& t, const Buffer<C>& out) {
  return check<T>(Reference(in, t), t, out);
}

template <class T, class C>
void run_cases(bool blocked) {
  for (const Case& t : cases()) {
    SCOPED_TRACE(t.name());
    const Operands<T, C> in(t);
    const Accum<T>* bias = t.bias ? in.bias.data() : nullptr;
    const auto run = [&] {
      Buffer<C> out = in.c;
      if (blocked) {
        cpu::matmul_blocked(in.a.data(), in.b.data(), out.data(), bias, t.accumulate, in.shape);
      } else {
        cpu::matmul(in.a.data(), in.b.data(), out.data(), bias, t.accumulate, in.shape);
      }
      return out;
    };
    const Buffer<C> out = run();
    ASSERT_TRUE(check(in, t, out));
    ASSERT_TRUE(identical(out, run()));

    if (blocked || t.op_a == Op::transpose) continue;
    cpu::PackedMatrix<T> packed(in.b.data(), in.b.ld(), t.op_b, t.k, t.n);
    Buffer<C> from_packed = in.c;
    packed.multiply(in.a.data(), in.a.ld(), from_packed.data(), from_packed.ld(), bias,
                    t.accumulate, t.m);
    ASSERT_TRUE(check(in, t, from_packed));
  }
}

template <class Pair>
class Matmul : public testing::Test {};
using Pairs = testing::Types<std::pair<double, double>, std::pair<float, float>,
                             std::pair<bf16, bf16>, std::pair<bf16, float>>;
TYPED_TEST_SUITE(Matmul, Pairs);

TYPED_TEST(Matmul, BlockedLoop) {
  using T = typename TypeParam::first_type;
  using C = typename TypeParam::second_type;
  for_each_isa([] { run_cases<T, C>(/*blocked=*/true); });
}

// oneDNN, where it is built in, takes one instruction set a process.
TYPED_TEST(Matmul, Dispatch) {
  using T = typename TypeParam::first_type;
  using C = typename TypeParam::second_type;
  run_cases<T, C>(/*blocked=*/false);
}

// A product on a GPU, twice: within its budget, and the same bits.
template <class T, class C, class B, class Run>
void check_run(const Operands<T, C, B>& in, const Reference& reference, const Case& t,
               const Queue& queue, const Run& run) {
  Buffer<C> first = in.c, second = in.c;
  const Accum<T>* bias = t.bias ? in.bias.data() : nullptr;
  run(in.a.data(), in.b.data(), first.data(), bias, t.accumulate, in.shape);
  run(in.a.data(), in.b.data(), second.data(), bias, t.accumulate, in.shape);
  finish(queue);
  ASSERT_TRUE(check<T>(reference, t, first));
  ASSERT_TRUE(identical(first, second));
}

TYPED_TEST(Matmul, EveryVersion) {
  using T = typename TypeParam::first_type;
  using C = typename TypeParam::second_type;
  if constexpr (gpu_computes<T>) {
    for (const Case& t : gpu_cases()) {
      SCOPED_TRACE(t.name());
      const Operands<T, C> in(t);
      const Reference reference(in, t);
      for_each_gpu([&](const Queue& queue) {
        const auto walk = [&]<class Stream>(const Stream& stream) {
          for (const auto& version : gpu::matmul_versions<T, C, Stream>()) {
            SCOPED_TRACE(version.name);
            check_run(in, reference, t, queue,
                      [&](auto... arguments) { version.run(arguments..., stream); });
          }
        };
        on_device<T>(
            queue, [] {}, walk);
        check_run(in, reference, t, queue, [&](auto... arguments) {
          OF_ON(queue, matmul, T, C)(arguments...);
        });
      });
      if (this->HasFatalFailure()) return;
    }
  }
}

template <class T>
class MatmulByAdapter : public testing::Test {};
using Activations = testing::Types<double, float, bf16>;
TYPED_TEST_SUITE(MatmulByAdapter, Activations);

TYPED_TEST(MatmulByAdapter, EveryDevice) {
  using T = TypeParam;
  for (const Case& t : gpu_cases()) {
    SCOPED_TRACE(t.name());
    const Operands<T, T, Accum<T>> in(t);
    const Reference reference(in, t);
    for_each_device<T>([&](const Queue& queue) {
      check_run(in, reference, t, queue, [&](auto... arguments) {
        OF_ON(queue, matmul_by_adapter, T)(arguments...);
      });
    });
    if (this->HasFatalFailure()) return;
  }
}

// The blocked loop's sums do not depend on the number of threads; oneDNN's may, but must repeat at
// every number.
TEST(MatmulThreads, SameBitsEveryRun) {
  const Case t{397, 203, 769, Op::none, Op::transpose, true, false, 1};
  const Operands<float, float> in(t);
  const auto run = [&](auto product) {
    Buffer<float> out = in.c;
    product(in.a.data(), in.b.data(), out.data(), in.bias.data(), false, in.shape);
    return out;
  };
  const int before = cpu::threads();
  const Buffer<float> blocked = run(cpu::matmul_blocked<float, float, float>);
  for (int threads : {1, 2, 3}) {
    SCOPED_TRACE(threads);
    cpu::set_threads(threads);
    EXPECT_TRUE(identical(blocked, run(cpu::matmul_blocked<float, float, float>)));
    const Buffer<float> first = run(cpu::matmul<float, float>);
    EXPECT_TRUE(check(in, t, first));
    for (int repeat = 0; repeat < 5; ++repeat) {
      EXPECT_TRUE(identical(first, run(cpu::matmul<float, float>)));
    }
  }
  cpu::set_threads(before);
}

// A packed matrix owns what it needs, and copies of it share that.
TEST(PackedMatrix, OutlivesItsSource) {
  const Case t{9, 24, 40, Op::none, Op::transpose};
  Operands<float, float> in(t);
  const auto original = in.b;
  cpu::PackedMatrix<float> copy;
  EXPECT_TRUE(copy.empty());
  EXPECT_EQ(copy.bytes(), 0u);
  {
    cpu::PackedMatrix<float> packed(in.b.data(), in.b.ld(), t.op_b, t.k, t.n);
    in.b.fill(7.0f);
    copy = packed;
  }
  EXPECT_EQ(copy.k(), t.k);
  EXPECT_EQ(copy.n(), t.n);
  EXPECT_GE(copy.bytes(), size_t(t.k * t.n) * sizeof(float));
  Buffer<float> out = in.c;
  copy.multiply(in.a.data(), in.a.ld(), out.data(), out.ld(), nullptr, false, t.m);
  in.b = original;
  EXPECT_TRUE(check(in, t, out));
}

TEST(MatmulContract, RefusesAPitchSmallerThanARow) {
  float x[16] = {};
  EXPECT_THROW(cpu::matmul(x, x, x, static_cast<const float*>(nullptr), false,
                           {.m = 2, .n = 2, .k = 4, .lda = 3, .ldb = 2, .ldc = 2}),
               Error);
  EXPECT_THROW(cpu::PackedMatrix<float>().multiply(x, 1, x, 1, nullptr, false, 1), Error);
}

// The budget notices one dropped product.
TEST(MatmulChecker, NoticesAMissingTerm) {
  const Case t{7, 17, 128};
  const Operands<float, float> in(t);
  Buffer<float> out = in.c;
  cpu::matmul_blocked(in.a.data(), in.b.data(), out.data(), static_cast<const float*>(nullptr),
                      false, in.shape);
  ASSERT_TRUE(check(in, t, out));
  out(3, 4) -= in.a(3, 100) * in.b(100, 4);
  EXPECT_FALSE(check(in, t, out));
}

}  // namespace
}  // namespace orthofed
