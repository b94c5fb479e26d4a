#include "kernels/attention/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/core/check.h"
#include "kernels/core/parallel.h"
#include "tests/support/buffer.h"
#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/gradcheck.h"
#include "tests/support/isa.h"
#include "tests/support/random.h"
#ifdef OF_HAVE_CUDNN
#include "kernels/attention/attention_cudnn.h"
#endif

namespace orthofed {
namespace {

using namespace orthofed::test;

struct Case {
  int64_t batch, tokens, heads, head_dim;
  int64_t padding = 0;  // of every row
  double spread = 1;    // standard deviation of q
  double apart = 0;     // added to q and taken from k: every score is far below 0

  std::string name() const {
    return std::to_string(batch) + " images, " + std::to_string(tokens) + " tokens, " +
           std::to_string(heads) + " x " + std::to_string(head_dim);
  }
};

// Around the tile (6 or 8 keys, 16 queries, 64 or 96 queries), a real geometry, more keys than are
// held at a time (64 of 256; by pairs 288 of any), scores in the hundreds.
const std::vector<Case> cases = {
    {1, 1, 1, 1, 1},   {2, 5, 2, 3, 3},    {1, 6, 1, 6},          {1, 17, 3, 24},
    {2, 65, 2, 32, 5}, {1, 64, 1, 16},     {1, 97, 1, 7, 1},      {1, 197, 1, 64, 2},
    {1, 293, 1, 8, 1}, {1, 67, 1, 256, 1}, {1, 50, 2, 64, 0, 40}, {3, 0, 2, 8},
    {0, 7, 2, 8},
};

// The emulator takes its time, so these are small: around the tiles (16 queries, 16 and 64 keys),
// all head sizes of the versions, rows that allow 16-byte packs and rows that do not, scores so low
// that a key that does not exist would have an infinite probability.
const std::vector<Case> gpu_cases = {
    {1, 1, 1, 1, 1},         {2, 7, 2, 3, 3},   {1, 16, 2, 32}, {1, 17, 1, 72, 8},
    {1, 50, 2, 64, 8},       {1, 65, 1, 80, 1}, {1, 33, 1, 96}, {1, 34, 1, 128, 2},
    {1, 17, 1, 64, 0, 40},   {1, 9, 1, 256, 1}, {3, 0, 2, 8},   {0, 7, 2, 8},
    {1, 17, 1, 16, 0, 1, 8},
};
// In one schedule: the geometries of ViT-B/16 and ViT-L/14, and keys that do not fit at once.
const std::vector<Case> large_gpu_cases = {{1, 197, 1, 64}, {1, 257, 1, 64}, {1, 161, 1, 128}};

template <class T>
struct Operands {
  AttentionShape shape;
  double scale;
  Buffer<T> qkv, out, dout;  // out and lse as forward left them
  Buffer<Accum<T>> lse;

  explicit Operands(const Case& t)
      : scale(1 / std::sqrt(double(t.head_dim))),
        qkv(t.batch * t.tokens, 3 * t.heads * t.head_dim, t.padding),
        out(t.batch * t.tokens, t.heads * t.head_dim, t.padding),
        dout(out),
        lse(t.batch * t.heads, t.tokens) {
    shape = {t.batch, t.tokens, t.heads, t.head_dim, qkv.ld(), out.ld()};
    fill_normal(qkv, 1);
    fill_normal(dout, 2);
    for (int64_t i = 0; i < qkv.rows(); ++i) {
      for (int64_t j = 0; j < t.heads * t.head_dim; ++j) {
        T &q = qkv(i, j), &k = qkv(i, t.heads * t.head_dim + j);
        q = T(t.spread * double(q) + t.apart);
        k = T(double(k) - t.apart);
      }
    }
  }
};

// Plain dense attention in double with, beside each value, the error that rounding in Accum<T> and
// T may cause: an inner product of k terms errs by k eps/2 sum |a b|, an error e of a score is a
// relative error e of its probability.
struct Result {
  std::vector<double> value, budget;
  Result() = default;
  explicit Result(int64_t n) : value(size_t(n)), budget(size_t(n)) {}
};
struct Reference {
  Result out, lse, dqkv;
};

//
// p_rounding: the error of rounding P and dS before the products that read them (tensor cores read
// bf16), relatively.
template <class T>
Reference reference(const Operands<T>& in, double p_rounding = 0) {
  const AttentionShape& s = in.shape;
  const int64_t n = s.tokens, d = s.head_dim, dim = s.heads * d;
  const double half = 0.5 * epsilon<Accum<T>>, rounding = 0.5 * epsilon<T>;
  // exp_ errs by 2 ulp; a handful of roundings surround each sum. In double the reference errs too.
  const double few = 8 * half, own = std::is_same_v<T, double> ? 2 : 1;
  Reference r{Result(in.out.rows() * dim), Result(s.batch * s.heads * n),
              Result(in.qkv.rows() * 3 * dim)};
  const auto set = [&](Result& to, int64_t at, double value, double error, double round) {
    to.value[size_t(at)] = value;
    to.budget[size_t(at)] = own * error + round * (std::abs(value) + error);
  };
  for (int64_t task = 0; task < s.batch * s.heads; ++task) {
    const int64_t row0 = task / s.heads * n, col0 = task % s.heads * d;
    const auto q = [&](int64_t i, int64_t c) -> double { return in.qkv(row0 + i, col0 + c); };
    const auto k = [&](int64_t i, int64_t c) -> double { return in.qkv(row0 + i, dim + col0 + c); };
    const auto v = [&](int64_t i, int64_t c) -> double {
      return in.qkv(row0 + i, 2 * dim + col0 + c);
    };
    const auto o = [&](int64_t i, int64_t c) -> double { return in.out(row0 + i, col0 + c); };
    const auto g = [&](int64_t i, int64_t c) -> double { return in.dout(row0 + i, col0 + c); };

    std::vector<double> p(size_t(n * n)), p_error(p), ds(p), ds_error(p);
    for (int64_t i = 0; i < n; ++i) {
      std::vector<double> score(static_cast<size_t>(n));
      double top = -INFINITY, sum = 0, score_error = 0;
      for (int64_t j = 0; j < n; ++j) {
        double dot = 0, size = 0;
        for (int64_t c = 0; c < d; ++c) {
          dot += q(i, c) * k(j, c);
          size += std::abs(q(i, c) * k(j, c));
        }
        score[size_t(j)] = in.scale * dot;
        top = std::max(top, score[size_t(j)]);
        score_error = std::max(score_error, half * double(d + 4) * in.scale * size);
      }
      for (double x : score) sum += std::exp(x - top);
      const double lse = top + std::log(sum);
      const double lse_error = score_error + half * double(n) + few * (1 + std::abs(lse));
      set(r.lse, task * n + i, lse, lse_error, 0);
      double row_dot = 0, row_dot_size = 0;
      for (int64_t c = 0; c < d; ++c) {
        row_dot += g(i, c) * o(i, c);
        row_dot_size += std::abs(g(i, c) * o(i, c));
      }
      for (int64_t j = 0; j < n; ++j) {
        const auto at = size_t(i * n + j);
        p[at] = std::exp(score[size_t(j)] - lse);
        p_error[at] = p[at] * (score_error + lse_error);
        double dp = 0, dp_size = 0;
        for (int64_t c = 0; c < d; ++c) {
          dp += g(i, c) * v(j, c);
          dp_size += std::abs(g(i, c) * v(j, c));
        }
        ds[at] = p[at] * (dp - row_dot);
        ds_error[at] = p_error[at] * std::abs(dp - row_dot) +
                       p[at] * half * double(d + 4) * (dp_size + row_dot_size);
      }
      for (int64_t c = 0; c < d; ++c) {
        double value = 0, error = 0;
        for (int64_t j = 0; j < n; ++j) {
          const auto at = size_t(i * n + j);
          value += p[at] * v(j, c);
          error +=
              (2 * p_error[at] + (half * double(n) + few + p_rounding) * p[at]) * std::abs(v(j, c));
        }
        set(r.out, (row0 + i) * dim + col0 + c, value, error, rounding);
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t c = 0; c < d; ++c) {
        double dq = 0, dk = 0, dv = 0, dq_error = 0, dk_error = 0, dv_error = 0, dq_peak = 0;
        const double sums = half * double(n) + few + p_rounding;
        for (int64_t j = 0; j < n; ++j) {
          const auto ij = size_t(i * n + j), ji = size_t(j * n + i);
          dq += in.scale * ds[ij] * k(j, c);
          dq_peak = std::max(dq_peak, std::abs(dq));
          dq_error += in.scale * (ds_error[ij] + sums * std::abs(ds[ij])) * std::abs(k(j, c));
          dk += in.scale * ds[ji] * q(j, c);
          dk_error += in.scale * (ds_error[ji] + sums * std::abs(ds[ji])) * std::abs(q(j, c));
          dv += p[ji] * g(j, c);
          dv_error += (p_error[ji] + sums * p[ji]) * std::abs(g(j, c));
        }
        const int64_t at = (row0 + i) * 3 * dim + col0 + c;
        // dQ is rounded after each part of the keys; here there are two at most.
        set(r.dqkv, at, dq, dq_error + rounding * dq_peak, rounding);
        set(r.dqkv, at + dim, dk, dk_error, rounding);
        set(r.dqkv, at + 2 * dim, dv, dv_error, rounding);
      }
    }
  }
  return r;
}

template <class T>
testing::AssertionResult check(const Buffer<T>& got, const Result& want) {
  return close(got, want.value, [&](int64_t i, int64_t j) -> double {
    return want.budget[size_t(i * got.cols() + j)];
  });
}

template <class T>
void forward(const Operands<T>& in, Buffer<T>& out, Buffer<Accum<T>>& lse) {
  cpu::attention_forward(in.qkv.data(), out.data(), lse.data(), in.shape, in.scale);
}
template <class T>
Buffer<T> backward(const Operands<T>& in) {
  Buffer<T> dqkv(in.qkv.rows(), in.qkv.cols(), in.qkv.ld() - in.qkv.cols());
  cpu::attention_backward(in.qkv.data(), in.out.data(), in.dout.data(), in.lse.data(), dqkv.data(),
                          in.shape, in.scale);
  return dqkv;
}

template <class T>
class Attention : public testing::Test {};
using Types = testing::Types<double, float, bf16>;
TYPED_TEST_SUITE(Attention, Types);

TYPED_TEST(Attention, AgreesWithDenseAttentionInDouble) {
  using T = TypeParam;
  for (const Case& t : cases) {
    SCOPED_TRACE(t.name());
    Operands<T> in(t);
    // A processor that multiplies bf16 reads P and dS in it.
    const bool bf16s = std::is_same_v<T, bf16> && cpu::native_bf16();
    const auto references = [&] {
      return std::pair(reference(in), bf16s ? reference(in, epsilon<bf16> / 2) : Reference());
    };
    auto [plain, rounded] = references();  // out and lse; their dqkv needs the out of forward
    for_each_isa([&] {
      const Reference& want = bf16s && cpu::native_bf16() ? rounded : plain;
      forward(in, in.out, in.lse);
      ASSERT_TRUE(check(in.out, want.out));
      ASSERT_TRUE(check(in.lse, want.lse));
      Buffer<T> again(in.out.rows(), in.out.cols(), t.padding);
      Buffer<Accum<T>> lse_again(in.lse.rows(), in.lse.cols());
      forward(in, again, lse_again);
      EXPECT_TRUE(identical(in.out, again));
      EXPECT_TRUE(identical(in.lse, lse_again));
      Buffer<T> without_lse(in.out.rows(), in.out.cols(), t.padding);
      cpu::attention_forward<T>(in.qkv.data(), without_lse.data(), nullptr, in.shape, in.scale);
      EXPECT_TRUE(identical(in.out, without_lse));
    });
    std::tie(plain, rounded) = references();
    for_each_isa([&] {
      const Reference& want = bf16s && cpu::native_bf16() ? rounded : plain;
      const Buffer<T> dqkv = backward(in);
      ASSERT_TRUE(check(dqkv, want.dqkv));
      EXPECT_TRUE(identical(dqkv, backward(in)));
    });
  }
}

// One version's forward, twice: within its budget, the same bits, and without lse as well.
template <class T, class Run>
void check_forward(const Operands<T>& in, const Reference& want, const Queue& queue,
                   const Run& run) {
  Buffer<T> out(in.out.rows(), in.out.cols(), in.out.ld() - in.out.cols()), again = out;
  Buffer<float> lse(in.lse.rows(), in.lse.cols());
  run(in.qkv.data(), out.data(), lse.data(), in.shape, in.scale);
  run(in.qkv.data(), again.data(), nullptr, in.shape, in.scale);
  finish(queue);
  ASSERT_TRUE(check(out, want.out));
  ASSERT_TRUE(check(lse, want.lse));
  ASSERT_TRUE(identical(out, again));
}
template <class T, class Run>
void check_backward(const Operands<T>& in, const Reference& want, const Queue& queue,
                    const Run& run) {
  Buffer<T> dqkv(in.qkv.rows(), in.qkv.cols(), in.qkv.ld() - in.qkv.cols()), again = dqkv;
  for (Buffer<T>* to : {&dqkv, &again})
    run(in.qkv.data(), in.out.data(), in.dout.data(), in.lse.data(), to->data(), in.shape,
        in.scale);
  finish(queue);
  ASSERT_TRUE(check(dqkv, want.dqkv));
  ASSERT_TRUE(identical(dqkv, again));
}

// Every version from `first` on that takes the head size.
template <class T>
void check_versions(const Case& t, const Queue& queue, int first = 1) {
  SCOPED_TRACE(t.name());
  Operands<T> in(t);
  forward(in, in.out, in.lse);
  const Reference want = reference(in, std::is_same_v<T, bf16> ? epsilon<bf16> / 2 : 0);
  const auto walk = [&]<class Stream>(const Stream& stream) {
    const auto check_all = [&](const auto& versions, const auto& check_one) {
      for (const auto& version : versions) {
        if (version.number < first) continue;
        if (version.number > 1 && t.head_dim > gpu::kMaxTiledHeadDim) continue;
        SCOPED_TRACE(version.name);
        check_one([&](auto... arguments) { version.run(arguments..., stream); });
      }
    };
    check_all(gpu::attention_forward_versions<T, Stream>(),
              [&](const auto& run) { check_forward(in, want, queue, run); });
    check_all(gpu::attention_backward_versions<T, Stream>(),
              [&](const auto& run) { check_backward(in, want, queue, run); });
  };
  on_device<T>(
      queue, "attention", [] {}, walk, [] { return Cost(); });
}

TYPED_TEST(Attention, EveryVersion) {
  using T = TypeParam;
  if constexpr (gpu_computes<T>) {
    for_each_gpu([](const Queue& queue) {
      for (const Case& t : gpu_cases) check_versions<T>(t, queue, t.tokens > 40 ? 2 : 1);
    });
  }
}

#if !defined(__SANITIZE_THREAD__)  // for which this is too much
TYPED_TEST(Attention, EveryVersionOnRealGeometries) {
  using T = TypeParam;
  if constexpr (gpu_computes<T>) {
    Queue queue;
    queue.device = have_gpu() ? Device::cuda : Device::simt;
    for (const Case& t : large_gpu_cases) check_versions<T>(t, queue, 2);
  }
}

// With many heads a block takes one group of queries after another, with few each group has its
// own.
TEST(AttentionGpu, SameBitsHoweverQueriesAreDealtToBlocks) {
  constexpr int64_t batch = 128, tokens = 129;
  Operands<bf16> in({batch, tokens, 1, 8});
  Queue queue;
  queue.device = have_gpu() ? Device::cuda : Device::simt;
  const auto run = [&](int64_t first, int64_t images, Buffer<bf16>& out) {
    AttentionShape shape = in.shape;
    shape.batch = images;
    of_on(queue, attention_forward, bf16)(&in.qkv(first * tokens, 0), &out(first * tokens, 0),
                                          &in.lse(first, 0), shape, in.scale);
  };
  Buffer<bf16> whole(batch * tokens, 8), last = whole;
  run(0, batch, whole);
  run(batch - 1, 1, last);
  finish(queue);
  EXPECT_TRUE(whole.verify());
  const auto row = [](Buffer<bf16>& x) { return &x((batch - 1) * tokens, 0); };
  EXPECT_EQ(std::memcmp(row(whole), row(last), tokens * 8 * sizeof(bf16)), 0);
}
#endif

// Whichever version it takes.
TYPED_TEST(Attention, Dispatch) {
  using T = TypeParam;
  if constexpr (gpu_computes<T>) {
    for (const Case& t : gpu_cases) {
      if (t.tokens > 17) continue;
      SCOPED_TRACE(t.name());
      Operands<T> in(t);
      forward(in, in.out, in.lse);
      const Reference want = reference(in, std::is_same_v<T, bf16> ? epsilon<bf16> / 2 : 0);
      Queue queue;
      queue.device = have_gpu() ? Device::cuda : Device::simt;
      check_forward(in, want, queue,
                    [&](auto... arguments) { of_on(queue, attention_forward, T)(arguments...); });
      check_backward(in, want, queue,
                     [&](auto... arguments) { of_on(queue, attention_backward, T)(arguments...); });
    }
  }
}

#ifdef OF_HAVE_CUDNN
// The peer keeps the contract wherever it takes the shape, and takes rows of whole 16 bytes.
TEST(AttentionCudnn, AgreesWithDenseAttentionInDouble) {
  const auto check_case = [](const Case& t, const Queue& queue) {
    SCOPED_TRACE(t.name());
    Operands<bf16> in(t);
    forward(in, in.out, in.lse);
    const Reference want = reference(in, epsilon<bf16> / 2);
    const auto run = [&](Buffer<bf16>& out, float* lse) {
      return cuda::attention_forward_cudnn(in.qkv.data(), out.data(), lse, in.shape, in.scale,
                                           queue.cuda);
    };
    Buffer<bf16> out(in.out.rows(), in.out.cols(), t.padding), again = out, without_lse = out;
    Buffer<float> lse(in.lse.rows(), in.lse.cols());
    if (!run(out, lse.data())) {
      EXPECT_FALSE(t.batch > 0 && t.tokens > 1 && t.head_dim % 8 == 0 && t.padding % 8 == 0);
      return;
    }
    ASSERT_TRUE(run(again, lse.data()) && run(without_lse, nullptr));
    finish(queue);
    ASSERT_TRUE(check(out, want.out));
    ASSERT_TRUE(check(without_lse, want.out));
    ASSERT_TRUE(check(lse, want.lse));
    ASSERT_TRUE(identical(out, again));
    check_backward(in, want, queue, [&](auto... arguments) {
      ASSERT_TRUE(cuda::attention_backward_cudnn(arguments..., queue.cuda));
    });
  };
  bool gpu = false;
  for_each_gpu([&](const Queue& queue) {
    if (queue.device != Device::cuda) return;
    gpu = true;
    if (!cuda::cudnn_found()) return;
    for (const Case& t : gpu_cases) check_case(t, queue);
    for (const Case& t : large_gpu_cases) check_case(t, queue);
  });
  if (!gpu) GTEST_SKIP() << "no GPU";
}

// Without asking cuDNN, whose engines would read past what is there, or a GPU.
TEST(AttentionCudnn, RefusesWhatIsNoWhole16Bytes) {
  Buffer<bf16> x(2, 64);
  x.fill(bf16(0));
  float lse[2];
  const auto takes = [&](const bf16* qkv, const AttentionShape& shape) {
    return cuda::attention_forward_cudnn(qkv, x.data(), lse, shape, 1, {}) ||
           cuda::attention_backward_cudnn(qkv, x.data(), x.data(), lse, x.data(), shape, 1, {});
  };
  EXPECT_FALSE(takes(x.data(), {1, 2, 1, 12, 64, 64}));
  EXPECT_FALSE(takes(x.data(), {1, 2, 1, 8, 60, 64}));
  EXPECT_FALSE(takes(x.data(), {1, 2, 1, 8, 64, 60}));
  EXPECT_FALSE(takes(x.data() + 1, {1, 2, 1, 8, 64, 64}));
  EXPECT_FALSE(takes(x.data(), {1, 1, 1, 8, 64, 64}));
  EXPECT_FALSE(takes(x.data(), {0, 2, 1, 8, 64, 64}));
  EXPECT_THROW(takes(x.data(), {1, 2, 1, 8, 16, 64}), Error);
}
#endif

TYPED_TEST(Attention, SameBitsForAnyNumberOfThreads) {
  using T = TypeParam;
  Operands<T> in({3, 33, 5, 24});
  const int before = cpu::threads();
  forward(in, in.out, in.lse);
  const Buffer<T> dqkv = backward(in);
  for (int threads : {1, 3}) {
    cpu::set_threads(threads);
    Operands<T> other({3, 33, 5, 24});
    forward(other, other.out, other.lse);
    EXPECT_TRUE(identical(in.out, other.out));
    EXPECT_TRUE(identical(dqkv, backward(other)));
  }
  cpu::set_threads(before);
}

TEST(AttentionGradient, AgreesWithFiniteDifferences) {
  Operands<double> in({2, 7, 2, 3, 1});
  const auto loss = [&] {
    forward(in, in.out, in.lse);
    return weighted_sum(in.out, in.dout);
  };
  loss();
  const Buffer<double> dqkv = backward(in);
  EXPECT_TRUE(check_gradient(loss, in.qkv, dqkv));
}

// Who watches for NaN sees it: in the rows of the query whose it is, in the whole head for a key's.
TYPED_TEST(Attention, NaNComesOut) {
  using T = TypeParam;
  Operands<T> in({1, 19, 2, 8});
  in.qkv(3, 2) = T(std::nanf(""));           // query 3 of head 0
  in.qkv(18, 2 * 8 + 8 + 1) = in.qkv(3, 2);  // key 18 of head 1
  for_each_isa([&] {
    forward(in, in.out, in.lse);
    const Buffer<T> dqkv = backward(in);
    for (int64_t i = 0; i < 19; ++i) {
      EXPECT_EQ(std::isnan(double(in.out(i, 0))), i == 3) << i;
      EXPECT_TRUE(std::isnan(double(in.out(i, 8)))) << i;
      EXPECT_EQ(std::isnan(double(dqkv(i, 0))), i == 3) << i;
      EXPECT_TRUE(std::isnan(double(dqkv(i, 2 * 8)))) << i;  // dK: every key meets query 3
      EXPECT_TRUE(std::isnan(double(dqkv(i, 8)))) << i;
    }
  });
}

TEST(AttentionContract, RefusesWhatItsTilesCannotHold) {
  Buffer<float> x(2, 3 * 257);
  x.fill(0);
  EXPECT_THROW(
      cpu::attention_forward<float>(x.data(), x.data(), nullptr, {1, 2, 1, 257, x.ld(), 257}, 1),
      Error);
  EXPECT_THROW(cpu::attention_forward<float>(x.data(), x.data(), nullptr, {1, 2, 1, 8, 23, 8}, 1),
               Error);
}

// The budget notices one key that is left out of one query's softmax.
TEST(AttentionChecker, NoticesAMissingKey) {
  Operands<float> in({1, 197, 1, 64});
  const Reference want = reference(in);
  forward(in, in.out, in.lse);
  ASSERT_TRUE(check(in.out, want.out));
  const double p = 1.0 / 197;
  for (int64_t c = 0; c < 64; ++c) in.out(100, c) = float(in.out(100, c) - p * in.qkv(7, 128 + c));
  EXPECT_FALSE(check(in.out, want.out));
}

}  // namespace
}  // namespace orthofed
