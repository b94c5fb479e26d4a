#include "kernels/matmul/matmul.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/parallel.h"
#include "kernels/matmul/05_mma.cuh"
#include "kernels/matmul/06_wgmma.cuh"
#ifdef OF_HAVE_CUBLASLT
#include "kernels/matmul/matmul_cublaslt.h"
#endif
#include "tests/kernels/gelu_reference.h"
#include "tests/kernels/matmul_reference.h"
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
  int64_t rank = 0;     // of a tail
  // Of V: the first third of its ranks counts in the first third of the columns, and so on, or in
  // the middle third none; else it is zero.
  enum { dense, thirds, outer_thirds } blocks = dense;

  std::string name() const {
    return std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k) +
           (op_a == Op::transpose ? " A^T" : "") + (op_b == Op::transpose ? " B^T" : "") +
           (bias ? " +bias" : "") + (accumulate ? " +C" : "") + " padding " +
           std::to_string(padding) +
           (rank > 0 ? " + rank " + std::to_string(rank) + (blocks == dense ? "" : " in blocks")
                     : "");
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

// The same for the GPU's kernels, whose tiles are 16, 64, 128 and 256 wide and end in steps of 8,
// 16, 32 and 64 along k; small, because the emulator runs them. Rows that are a multiple of 16
// bytes apart are read in packs, others are not.
std::vector<Case> gpu_cases() {
  std::vector<Case> list;
  const auto add = [&](const std::array<int64_t, 3>& size, int options, int64_t padding) {
    list.push_back({size[0], size[1], size[2], options & 1 ? Op::transpose : Op::none,
                    options & 2 ? Op::transpose : Op::none, (options & 4) != 0, (options & 8) != 0,
                    padding});
  };
  for (int options = 0; options < 16; ++options) {
    add({7, 17, 5}, options, 3);
    add({24, 40, 41}, options, options % 3 == 0 ? 0 : 7);
  }
  for (const int options : {0, 3, 5, 10}) {
    add({1, 1, 1}, options, 0);
    add({129, 67, 34}, options, 1);
    add({65, 131, 9}, options, 0);
    add({64, 128, 96}, options, 8);
    add({16, 136, 200}, options, 0);
    add({0, 5, 3}, options, 1);
    add({5, 0, 3}, options, 1);
    add({5, 3, 0}, options, 1);
  }
  // All pitches multiples of 16 bytes; four tiles of version 6, for the emulator's three blocks.
  for (const int options : {0, 7}) add({129, 265, 73}, options, 7);
  return list;
}

template <class T, class C, class B = T>
struct Operands {
  Buffer<T> a;
  Buffer<B> b;
  Buffer<Accum<T>> bias;
  Buffer<C> c;
  Buffer<T> u, v;
  MatmulShape shape;
  MatmulTail<T> tail;

  explicit Operands(const Case& t)
      : a(t.op_a == Op::none ? t.m : t.k, t.op_a == Op::none ? t.k : t.m, t.padding),
        b(t.op_b == Op::none ? t.k : t.n, t.op_b == Op::none ? t.n : t.k, t.padding),
        bias(1, t.n),
        c(t.m, t.n, t.padding),
        u(t.m, t.rank, t.padding),
        v(t.op_b == Op::none ? t.rank : t.n, t.op_b == Op::none ? t.n : t.rank, t.padding) {
    fill_normal(a, 1);
    fill_normal(b, 2);
    fill_normal(bias, 3);
    if (t.accumulate) fill_normal(c, 4);
    shape = {t.m, t.n, t.k, a.ld(), b.ld(), c.ld(), t.op_a, t.op_b};
    fill_normal(u, 5);
    fill_normal(v, 6);
    tail = {u.data(), u.ld(), v.data(), v.ld(), t.rank};
    if (t.blocks == Case::dense) return;
    for (int64_t q = 0; q < 3; ++q)
      if (q != 1 || t.blocks == Case::thirds)
        tail.parts[size_t(q)] = {q * t.n / 3, (q + 1) * t.n / 3, q * t.rank / 3,
                                 (q + 1) * t.rank / 3};
    for (int64_t j = 0; j < t.n; ++j)
      for (int64_t r = 0; r < t.rank; ++r) {
        bool counts = false;
        for (const MatmulTailPart& p : tail.parts)
          counts |= p.begin <= j && j < p.end && p.first <= r && r < p.last;
        if (!counts) (t.op_b == Op::none ? v(r, j) : v(j, r)) = T(0.0f);
      }
  }
  Matmul<T, C, B> arguments(const Case& t, Buffer<C>& out) const {
    return {.a = a.data(),
            .b = b.data(),
            .c = out.data(),
            .bias = bias_of(t),
            .accumulate = t.accumulate,
            .shape = shape};
  }
  const Accum<T>* bias_of(const Case& t) const { return t.bias ? bias.data() : nullptr; }
};

// The product in double, and the error that one in T may have: a sum of k products (and a tail's)
// in any order errs by at most k * eps/2 * sum |a b| (Higham, Accuracy and Stability, 3.1), and C
// is rounded once.
struct Reference {
  std::vector<double> want, size;  // [m, n]; size: sum |a b|

  template <class T, class C, class B>
  Reference(const Operands<T, C, B>& in, const Case& t) {
    for (int64_t i = 0; i < t.m; ++i) {
      for (int64_t j = 0; j < t.n; ++j) {
        const auto product = reference::product_element(
            t.k, [&](int64_t p) -> double { return t.op_a == Op::none ? in.a(i, p) : in.a(p, i); },
            [&](int64_t p) -> double { return t.op_b == Op::none ? in.b(p, j) : in.b(j, p); });
        const auto tail = reference::product_element(
            t.rank, [&](int64_t r) -> double { return in.u(i, r); },
            [&](int64_t r) -> double { return t.op_b == Op::none ? in.v(r, j) : in.v(j, r); });
        const double bias = t.bias ? double(in.bias(0, j)) : 0;
        const double before = t.accumulate ? double(in.c(i, j)) : 0;
        want.push_back(product.value + tail.value + bias + before);
        size.push_back(product.size + tail.size + std::abs(bias) + std::abs(before));
      }
    }
  }

  template <class T, class C>
  double budget(const Case& t, size_t at) const {
    const double sums = 0.5 * epsilon<Accum<T>> * double(t.k + t.rank + 2) * size[at];
    // The reference itself sums in double: twice the bound for T = double.
    return (std::is_same_v<T, double> ? 2 : 1) * sums +
           0.5 * epsilon<C> * (std::abs(want[at]) + sums);
  }
};

template <class T, class C>
testing::AssertionResult check(const Reference& reference, const Case& t, const Buffer<C>& out) {
  return close(out, reference.want, [&](int64_t i, int64_t j) -> double {
    return reference.budget<T, C>(t, size_t(i * t.n + j));
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
    const Reference reference(in, t);
    const auto run = [&] {
      Buffer<C> out = in.c;
      const auto arguments = in.arguments(t, out);
      blocked ? cpu::matmul_blocked(arguments) : cpu::matmul(arguments);
      return out;
    };
    const auto check_twice = [&] {
      const Buffer<C> out = run();
      ASSERT_TRUE(check<T>(reference, t, out));
      ASSERT_TRUE(identical(out, run()));
    };
    if (blocked) {
      for_each_isa(check_twice);
    } else {
      check_twice();  // oneDNN, where it is built in, takes one instruction set a process
      if (t.op_a == Op::transpose) continue;
      cpu::PackedMatrix<T> packed(in.b.data(), in.b.ld(), t.op_b, t.k, t.n);
      Buffer<C> from_packed = in.c;
      packed.multiply(in.a.data(), in.a.ld(), from_packed.data(), from_packed.ld(), in.bias_of(t),
                      t.accumulate, t.m);
      ASSERT_TRUE(check<T>(reference, t, from_packed));
    }
    if (testing::Test::HasFatalFailure()) return;
  }
}

template <class Pair>
class MatmulProduct : public testing::Test {};
using Pairs = testing::Types<std::pair<double, double>, std::pair<float, float>,
                             std::pair<bf16, bf16>, std::pair<bf16, float>>;
TYPED_TEST_SUITE(MatmulProduct, Pairs);

TYPED_TEST(MatmulProduct, BlockedLoop) {
  using T = typename TypeParam::first_type;
  using C = typename TypeParam::second_type;
  run_cases<T, C>(/*blocked=*/true);
}

TYPED_TEST(MatmulProduct, Dispatch) {
  using T = typename TypeParam::first_type;
  using C = typename TypeParam::second_type;
  run_cases<T, C>(/*blocked=*/false);
}

// Remembers the first result of each kind of device and version; every later one must have its
// bits, in whatever order the emulator's threads ran.
template <class C>
class SameBits {
 public:
  testing::AssertionResult check(const Queue& queue, int version, const Buffer<C>& out) {
    const auto [first, is_first] =
        results_.try_emplace({queue.device, queue.simt.capability, version}, out);
    return is_first ? testing::AssertionSuccess() : identical(first->second, out);
  }

 private:
  std::map<std::tuple<Device, int, int>, Buffer<C>> results_;
};

// The emulator repeats a run by its three schedules.
int runs(const Queue& queue) {
  return queue.device == Device::cuda ? 2 : 1;
}

#ifdef OF_HAVE_CUBLASLT
// The peer keeps the contract wherever it takes the product.
TYPED_TEST(MatmulProduct, CublasLt) {
  using T = typename TypeParam::first_type;
  using C = typename TypeParam::second_type;
  if constexpr (gpu_computes<T>) {
    bool gpu = false;
    for_each_gpu([&](const Queue& queue) {
      if (queue.device != Device::cuda) return;
      gpu = true;
      for (const Case& t : gpu_cases()) {
        SCOPED_TRACE(t.name());
        const Operands<T, C> in(t);
        const Reference reference(in, t);
        SameBits<C> same;
        for (int repeat = 0; repeat < runs(queue); ++repeat) {
          Buffer<C> out = in.c;
          if (!cuda::matmul_cublaslt(in.arguments(t, out), queue.cuda)) break;
          finish(queue);
          ASSERT_TRUE(check<T>(reference, t, out));
          ASSERT_TRUE(same.check(queue, 0, out));
        }
      }
    });
    if (!gpu) GTEST_SKIP() << "no GPU";
  }
}
#endif

TYPED_TEST(MatmulProduct, EveryVersion) {
  using T = typename TypeParam::first_type;
  using C = typename TypeParam::second_type;
  if constexpr (gpu_computes<T>) {
    std::map<int, int> run;  // version: cases
    for (const Case& t : gpu_cases()) {
      SCOPED_TRACE(t.name());
      const Operands<T, C> in(t);
      const Reference reference(in, t);
      SameBits<C> same;
      const auto check_version = [&](const Queue& queue, int number, const auto& multiply) {
        SCOPED_TRACE(number);
        for (int repeat = 0; repeat < runs(queue); ++repeat) {
          Buffer<C> out = in.c;
          multiply(in.arguments(t, out));
          finish(queue);
          ASSERT_TRUE(check<T>(reference, t, out));
          ASSERT_TRUE(same.check(queue, number, out));
        }
      };
      for_each_gpu([&](Queue queue) {
        queue.simt.capability = 90;  // where all of them run
        on_stream(queue, [&]<class Stream>(const Stream& stream) {
          for (const auto& version : gpu::matmul_versions<T, C, Stream>()) {
            // The largest case is there for the largest tiles; the others would take long for it.
            if (t.n > 256 && version.number < 5 && queue.device == Device::simt) continue;
            Buffer<C> unused = in.c;
            if (version.applies != nullptr && !version.applies(in.arguments(t, unused), stream))
              continue;
            ++run[version.number];
            check_version(queue, version.number,
                          [&](const auto& arguments) { version.run(arguments, stream); });
          }
        });
      });
      for_each_gpu([&](Queue queue) {
        queue.simt.capability = 90;
        // Takes one of the versions above, so a few cases are enough where they are slow.
        if (t.m > 7 && queue.device == Device::simt) return;
        check_version(queue, 0, [&](const auto& arguments) { OF_RUN(queue, matmul, arguments); });
      });
      if (this->HasFatalFailure()) return;
    }
    if (wanted(Device::simt)) {
      EXPECT_EQ(run.size(), (std::is_same_v<T, bf16> ? 6u : 4u));
      for (const auto& [version, cases] : run) EXPECT_GE(cases, 3 * 16) << version;
    }
  }
}

template <class T>
class MatmulLayer : public testing::Test {};
using Activations = testing::Types<double, float, bf16>;
TYPED_TEST_SUITE(MatmulLayer, Activations);

TYPED_TEST(MatmulLayer, ByAdapter) {
  using T = TypeParam;
  for (const Case& t : gpu_cases()) {
    SCOPED_TRACE(t.name());
    const Operands<T, T, Accum<T>> in(t);
    const Reference reference(in, t);
    SameBits<T> same;
    for_each_device<T>([&](const Queue& queue) {
      for (int repeat = 0; repeat < runs(queue); ++repeat) {
        Buffer<T> out = in.c;
        OF_RUN(queue, matmul_by_adapter, in.arguments(t, out));
        finish(queue);
        ASSERT_TRUE(check<T>(reference, t, out));
        if (queue.device != Device::cpu) {
          ASSERT_TRUE(same.check(queue, 0, out));
        }
      }
    });
    if (this->HasFatalFailure()) return;
  }
}

// --- With a fused step ------------------------------------------------------------------------

// for_each_device, and the emulated Hopper, where version 6 takes what it can.
template <class T, class F>
void for_each_layer_device(F&& body) {
  for_each_device<T>(body);
  if constexpr (std::is_same_v<T, bf16>)
    if (!testing::Test::HasFatalFailure())
      for_each_gpu([&](Queue queue) {
        if (queue.device != Device::simt) return;
        SCOPED_TRACE("compute capability 9.0");
        queue.simt.capability = 90;
        body(queue);
      });
}

// Ranks around steps of 16, 32 and 64, packed and not; blocks that tiles of 128 and 256 columns
// cross, and a tile that needs no rank at all; nothing but the tail.
std::vector<Case> tail_cases() {
  std::vector<Case> list;
  for (const Op op_b : {Op::none, Op::transpose}) {
    for (const int64_t rank : {1, 8, 16, 48, 72})
      list.push_back(
          {24, 40, 41, Op::none, op_b, rank % 16 == 0, false, rank % 3 == 0 ? 0 : 7, rank});
    list.push_back({24, 40, 40, Op::none, op_b, true, false, 8, 16});
    list.push_back({24, 40, 40, Op::none, op_b, false, false, 8, 72});
    list.push_back({20, 312, 40, Op::none, op_b, true, false, 8, 24, Case::thirds});
    list.push_back({130, 387, 24, Op::none, op_b, false, false, 5, 48, Case::outer_thirds});
    list.push_back({20, 768, 40, Op::none, op_b, false, false, 8, 48, Case::outer_thirds});
    list.push_back({5, 3, 0, Op::none, op_b, true, false, 1, 9});
    list.push_back({0, 3, 4, Op::none, op_b, true, false, 1, 9});
  }
  return list;
}

std::vector<Case> layer_cases() {
  std::vector<Case> list;
  for (const Case& t : gpu_cases())
    if (t.op_a == Op::none && !t.accumulate) list.push_back(t);
  for (const Case& t : tail_cases()) list.push_back(t);
  return list;
}

// A GPU takes a tail in bf16.
template <class T>
bool refuses(const Queue& queue, const Case& t) {
  return t.rank > 0 && queue.device != Device::cpu && !std::is_same_v<T, bf16>;
}

TYPED_TEST(MatmulLayer, Extended) {
  using T = TypeParam;
  for (const Case& t : layer_cases()) {
    SCOPED_TRACE(t.name());
    const Operands<T, T> in(t);
    const Reference reference(in, t);
    SameBits<T> same;
    for_each_layer_device<T>([&](const Queue& queue) {
      for (int repeat = 0; repeat < runs(queue); ++repeat) {
        Buffer<T> out = in.c;
        const auto run = [&] {
          OF_RUN(queue, matmul_extended,
                 MatmulExtended<T>{.a = in.a.data(),
                                   .b = in.b.data(),
                                   .tail = in.tail,
                                   .c = out.data(),
                                   .bias = in.bias_of(t),
                                   .shape = in.shape});
        };
        if (refuses<T>(queue, t)) {
          EXPECT_THROW(run(), Error);
          continue;
        }
        run();
        finish(queue);
        ASSERT_TRUE(check<T>(reference, t, out));
        if (queue.device != Device::cpu) {
          ASSERT_TRUE(same.check(queue, 0, out));
        }
      }
    });
    if (this->HasFatalFailure()) return;
  }
}

constexpr GeluKind kGelus[] = {GeluKind::erf, GeluKind::tanh, GeluKind::quick};

TYPED_TEST(MatmulLayer, Gelu) {
  using T = TypeParam;
  constexpr double e = 2 * epsilon<Accum<T>>;
  for (const Case& t : layer_cases()) {
    SCOPED_TRACE(t.name());
    const GeluKind kind = kGelus[t.k % 3];
    const Operands<T, T> in(t);
    const Reference reference(in, t);
    std::vector<double> want;
    for (double x : reference.want) want.push_back(reference::gelu(x, kind));
    SameBits<T> same;
    for_each_layer_device<T>([&](const Queue& queue) {
      for (int repeat = 0; repeat < runs(queue); ++repeat) {
        Buffer<T> h(t.m, t.n, t.padding + 1), y = in.c;
        if (refuses<T>(queue, t)) continue;
        OF_RUN(queue, matmul_gelu,
               MatmulGelu<T>{.a = in.a.data(),
                             .b = in.b.data(),
                             .tail = in.tail,
                             .bias = in.bias_of(t),
                             .h = h.data(),
                             .ldh = h.ld(),
                             .y = y.data(),
                             .kind = kind,
                             .shape = in.shape});
        finish(queue);
        ASSERT_TRUE(check<T>(reference, t, h));
        ASSERT_TRUE(close(y, want, [&](int64_t i, int64_t j) -> double {
          const auto at = size_t(i * t.n + j);
          return 1.13 * reference.template budget<T, T>(t, at) +
                 4 * e * std::abs(reference.want[at]) + epsilon<T> / 2 * 1.01 * std::abs(want[at]);
        }));
        if (queue.device != Device::cpu) {
          ASSERT_TRUE(same.check(queue, 0, h));
          ASSERT_TRUE(same.check(queue, 1, y));
        }
      }
    });
    if (this->HasFatalFailure()) return;
  }
}

TYPED_TEST(MatmulLayer, GeluBackward) {
  using T = TypeParam;
  constexpr double e = 2 * epsilon<Accum<T>>;
  for (Case t : layer_cases()) {
    t.bias = false;
    SCOPED_TRACE(t.name());
    const GeluKind kind = kGelus[t.k % 3];
    const Operands<T, T> in(t);
    const Reference reference(in, t);
    Buffer<T> h(t.m, t.n, t.padding + 1);
    fill_normal(h, 7, 0, 2);
    std::vector<double> want, slope;
    for (int64_t i = 0; i < t.m; ++i)
      for (int64_t j = 0; j < t.n; ++j) {
        slope.push_back(reference::gelu_derivative(double(h(i, j)), kind));
        want.push_back(reference.want[size_t(i * t.n + j)] * slope.back());
      }
    SameBits<T> same;
    for_each_layer_device<T>([&](const Queue& queue) {
      for (int repeat = 0; repeat < runs(queue); ++repeat) {
        Buffer<T> dx = in.c;
        if (refuses<T>(queue, t)) continue;
        OF_RUN(queue, matmul_gelu_backward,
               MatmulGeluBackward<T>{.a = in.a.data(),
                                     .b = in.b.data(),
                                     .tail = in.tail,
                                     .h = h.data(),
                                     .ldh = h.ld(),
                                     .dx = dx.data(),
                                     .kind = kind,
                                     .shape = in.shape});
        finish(queue);
        ASSERT_TRUE(close(dx, want, [&](int64_t i, int64_t j) -> double {
          const auto at = size_t(i * t.n + j);
          const double sum = reference.template budget<T, T>(t, at);
          return std::abs(slope[at]) * sum +
                 4 * e * (std::abs(reference.want[at]) + sum) * (1 + std::abs(double(h(i, j)))) +
                 epsilon<T> / 2 * (std::abs(want[at]) + std::abs(slope[at]) * sum);
        }));
        if (queue.device != Device::cpu) {
          ASSERT_TRUE(same.check(queue, 0, dx));
        }
      }
    });
    if (this->HasFatalFailure()) return;
  }
}

TYPED_TEST(MatmulLayer, Residual) {
  using T = TypeParam;
  using A = Accum<T>;
  constexpr double e = epsilon<A>;
  for (const Case& t : layer_cases()) {
    SCOPED_TRACE(t.name());
    const Operands<T, A> in(t);
    const Reference reference(in, t);
    Buffer<A> x(t.m, t.n, t.padding + 2), gamma(1, t.n);
    fill_normal(x, 7, 0, 20);
    fill_normal(gamma, 8);
    for (const bool scaled : {false, true}) {
      std::vector<double> want;
      for (int64_t i = 0; i < t.m; ++i)
        for (int64_t j = 0; j < t.n; ++j)
          want.push_back(x(i, j) +
                         (scaled ? gamma(0, j) : A(1)) * reference.want[size_t(i * t.n + j)]);
      SameBits<A> same;
      for_each_layer_device<T>([&](const Queue& queue) {
        for (int repeat = 0; repeat < runs(queue); ++repeat) {
          Buffer<A> y = in.c;
          if (refuses<T>(queue, t)) continue;
          OF_RUN(queue, matmul_residual,
                 MatmulResidual<T>{.a = in.a.data(),
                                   .b = in.b.data(),
                                   .tail = in.tail,
                                   .bias = in.bias_of(t),
                                   .gamma = scaled ? gamma.data() : nullptr,
                                   .x = x.data(),
                                   .ldx = x.ld(),
                                   .y = y.data(),
                                   .shape = in.shape});
          finish(queue);
          ASSERT_TRUE(close(y, want, [&](int64_t i, int64_t j) -> double {
            const auto at = size_t(i * t.n + j);
            const double scale = scaled ? std::abs(double(gamma(0, j))) : 1;
            return scale * reference.template budget<T, A>(t, at) +
                   e * (std::abs(double(x(i, j))) + 2 * scale * std::abs(reference.want[at]));
          }));
          if (queue.device != Device::cpu) {
            ASSERT_TRUE(same.check(queue, 0, y));
          }
        }
      });
      if (this->HasFatalFailure()) return;
    }
  }
}

TEST(MatmulLayerContract, RefusesATransposedA) {
  float values[16] = {};
  float* const x = values;
  const MatmulGeluBackward<float> arguments{
      .a = x,
      .b = x,
      .tail = {},
      .h = x,
      .ldh = 2,
      .dx = x,
      .kind = GeluKind::erf,
      .shape = {.m = 2, .n = 2, .k = 4, .lda = 2, .ldb = 2, .ldc = 2, .op_a = Op::transpose}};
  for_each_device<float>([&](const Queue& queue) {
    EXPECT_THROW(OF_RUN(queue, matmul_gelu_backward, arguments), Error);
  });
}

TEST(MatmulVersions, Version6LeavesTheRestToOthers) {
  alignas(16) static bf16 data[512] = {};
  const MatmulShape shape{.m = 8, .n = 16, .k = 8, .lda = 8, .ldb = 16, .ldc = 16};
  const auto applies = [](const bf16* a, const MatmulShape& s, int capability) {
    const simt::Stream stream{simt::Schedule::forward, 0, {}, capability};
    return gpu::Wgmma::applies(gpu::product(a, data, s), gpu::NoTail(), stream);
  };
  const auto with = [&](auto change) {
    MatmulShape changed = shape;
    change(changed);
    return applies(data, changed, 90);
  };
  EXPECT_TRUE(applies(data, shape, 90));
  EXPECT_FALSE(applies(data, shape, 80));
  EXPECT_FALSE(applies(data + 1, shape, 90));
  EXPECT_FALSE(with([](MatmulShape& s) { s.lda = 9; }));
  EXPECT_FALSE(with([](MatmulShape& s) { s.ldb = 17; }));
  EXPECT_FALSE(with([](MatmulShape& s) { s.m = 0; }));
  EXPECT_FALSE(with([](MatmulShape& s) { s.n = 0; }));
  EXPECT_FALSE(with([](MatmulShape& s) { s.k = 0; }));
  const auto with_tail = [&](const MatmulTail<bf16>& tail) {
    const simt::Stream stream{simt::Schedule::forward, 0, {}, 90};
    const auto x = gpu::product(data, data, shape);
    return gpu::Wgmma::applies(x, gpu::tail_of(x, tail), stream);
  };
  EXPECT_TRUE(with_tail({data, 8, data, 16, 4}));
  EXPECT_FALSE(with_tail({data, 9, data, 16, 4}));
  EXPECT_FALSE(with_tail({data, 8, data, 17, 4}));
  EXPECT_FALSE(with_tail({data, 8, data + 1, 16, 4}));
  EXPECT_THROW(with_tail({data, 3, data, 16, 4}), Error);
  // Called all the same, it refuses.
  const gpu::Store<float> nowhere{};
  EXPECT_THROW(gpu::Wgmma::run(gpu::product(data + 1, data, shape), gpu::NoTail(), nowhere,
                               simt::Stream{simt::Schedule::forward, 0, {}, 90}),
               Error);
}

// A tile walks the ranks that its columns need, in steps of 16.
TEST(MatmulTiles, TailsAreAsLongAsTheColumnsNeed) {
  alignas(16) static bf16 data[8] = {};
  const gpu::Product<bf16, bf16> x{gpu::operand(data, 4, 8, 8, true),
                                   gpu::operand(data, 600, 8, 8, true)};
  const MatmulTailPart q{0, 200, 0, 24}, v{400, 600, 24, 40};
  const auto ranks = [&](std::array<MatmulTailPart, 3> parts, int64_t j, int width) {
    const gpu::Tail tail = gpu::tail_of(x, {data, 40, data, 40, 40, parts});
    const gpu::Ranks r = gpu::tail_ranks(tail, j, width);
    return std::pair(r.begin, r.end);
  };
  using Ends = std::pair<int64_t, int64_t>;
  EXPECT_EQ(ranks({q, v}, 0, 128), Ends(0, 32));
  EXPECT_EQ(ranks({q, v}, 199, 1), Ends(0, 32));
  const Ends none = ranks({q, v}, 200, 128);
  EXPECT_EQ(none.first, none.second);
  EXPECT_EQ(ranks({q, v}, 384, 128), Ends(16, 48));
  EXPECT_EQ(ranks({q, v}, 128, 512), Ends(0, 48));
  EXPECT_EQ(ranks({}, 384, 128), Ends(0, 48));
}

// Eight rows of one column of chunks, which ldmatrix reads at once, in 16-byte pieces of a line of
// 128 bytes: each once. And no two chunks in one place.
template <bool kAlongK>
void check_swizzle(unsigned rows) {
  using Tile = gpu::MmaTile<kAlongK>;
  std::set<unsigned> places;
  for (unsigned row = 0; row < rows; row += 8) {
    for (unsigned chunk = 0; chunk < Tile::kChunks; ++chunk) {
      std::set<unsigned> banks;
      for (unsigned r = row; r < row + 8; ++r) {
        banks.insert(Tile::at(r, chunk) / 8 % 8);
        places.insert(Tile::at(r, chunk));
      }
      EXPECT_EQ(banks.size(), 8u) << row << ", " << chunk;
    }
  }
  EXPECT_EQ(int(places.size()), gpu::Mma::kOperand / 8);
  EXPECT_EQ(*places.rbegin(), gpu::Mma::kOperand - 8);
}
TEST(MatmulTiles, LdmatrixMeetsNoBankTwice) {
  check_swizzle<true>(gpu::Mma::kTile);
  check_swizzle<false>(gpu::Mma::kStep);
}

// Half a warp stores pairs of 4 rows and 8 columns at once: 32 banks.
TEST(MatmulTiles, AccumulatorsMeetNoBankTwice) {
  for (unsigned row = 0; row < 128; row += 4)
    for (unsigned col = 0; col < 128; col += 8) {
      std::set<unsigned> banks;
      for (unsigned r = row; r < row + 4; ++r)
        for (unsigned c = col; c < col + 8; ++c) banks.insert(gpu::SumTile::at(r, c) % 32);
      EXPECT_EQ(banks.size(), 32u);
    }
}

// The blocked loop's sums do not depend on the number of threads; oneDNN's may, but must repeat at
// every number.
TEST(MatmulThreads, SameBitsEveryRun) {
  using Product = void(const Matmul<float, float>&);
  const Case t{397, 203, 769, Op::none, Op::transpose, true, false, 1};
  const Operands<float, float> in(t);
  const auto run = [&](Product* product) {
    Buffer<float> out = in.c;
    product(in.arguments(t, out));
    return out;
  };
  const int before = cpu::threads();
  const Buffer<float> blocked = run(cpu::matmul_blocked);
  for (int threads : {1, 2, 3}) {
    SCOPED_TRACE(threads);
    cpu::set_threads(threads);
    EXPECT_TRUE(identical(blocked, run(cpu::matmul_blocked)));
    const Buffer<float> first = run(cpu::matmul);
    EXPECT_TRUE(check(in, t, first));
    for (int repeat = 0; repeat < 5; ++repeat) {
      EXPECT_TRUE(identical(first, run(cpu::matmul)));
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
  EXPECT_THROW(
      cpu::matmul(Matmul<float, float>{
          .a = x, .b = x, .c = x, .shape = {.m = 2, .n = 2, .k = 4, .lda = 3, .ldb = 2, .ldc = 2}}),
      Error);
  EXPECT_THROW(cpu::PackedMatrix<float>().multiply(x, 1, x, 1, nullptr, false, 1), Error);
}

// The budget notices one dropped product.
TEST(MatmulChecker, NoticesAMissingTerm) {
  const Case t{7, 17, 128};
  const Operands<float, float> in(t);
  Buffer<float> out = in.c;
  cpu::matmul_blocked(in.arguments(t, out));
  ASSERT_TRUE(check(in, t, out));
  out(3, 4) -= in.a(3, 100) * in.b(100, 4);
  EXPECT_FALSE(check(in, t, out));
}

}  // namespace
}  // namespace orthofed
