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
#include "tests/kernels/attention_reference.h"
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
  AttentionForward<T> forward_arguments(Buffer<T>& to, Accum<T>* to_lse) const {
    return {.qkv = qkv.data(), .out = to.data(), .lse = to_lse, .shape = shape, .scale = scale};
  }
  AttentionBackward<T> backward_arguments(Buffer<T>& dqkv) const {
    return {.qkv = qkv.data(),
            .out = out.data(),
            .dout = dout.data(),
            .lse = lse.data(),
            .dqkv = dqkv.data(),
            .shape = shape,
            .scale = scale};
  }
};

// The reference of every head, packed as the results are.
using Result = reference::AttentionNumbers;
struct Reference {
  Result out, lse, dqkv;
};

template <class T>
Reference reference_of(const Operands<T>& in, double p_rounding = 0) {
  const int64_t n = in.shape.tokens, d = in.shape.head_dim, dim = in.shape.heads * d;
  const auto sized = [](int64_t count) {
    return Result{std::vector<double>(size_t(count)), std::vector<double>(size_t(count))};
  };
  Reference r{sized(in.out.rows() * dim), {}, sized(in.qkv.rows() * 3 * dim)};
  for (int64_t task = 0; task < in.shape.batch * in.shape.heads; ++task) {
    const int64_t row0 = task / in.shape.heads * n, col0 = task % in.shape.heads * d;
    const auto part = [&](const Buffer<T>& x, int64_t column) {
      return [&x, row0, column](int64_t i, int64_t c) -> double { return x(row0 + i, column + c); };
    };
    const auto head = reference::attention_head<T>(
        n, d, in.scale, part(in.qkv, col0), part(in.qkv, dim + col0), part(in.qkv, 2 * dim + col0),
        part(in.out, col0), part(in.dout, col0), p_rounding);
    const auto place = [&](Result& to, int64_t pitch, int64_t column, const Result& from) {
      for (int64_t e = 0; e < n * d; ++e) {
        const auto at = size_t((row0 + e / d) * pitch + column + col0 + e % d);
        to.value[at] = from.value[size_t(e)];
        to.budget[at] = from.budget[size_t(e)];
      }
    };
    place(r.out, dim, 0, head.out);
    place(r.dqkv, 3 * dim, 0, head.dq);
    place(r.dqkv, 3 * dim, dim, head.dk);
    place(r.dqkv, 3 * dim, 2 * dim, head.dv);
    r.lse.value.insert(r.lse.value.end(), head.lse.value.begin(), head.lse.value.end());
    r.lse.budget.insert(r.lse.budget.end(), head.lse.budget.begin(), head.lse.budget.end());
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
  cpu::attention_forward(in.forward_arguments(out, lse.data()));
}
template <class T>
Buffer<T> backward(const Operands<T>& in) {
  Buffer<T> dqkv(in.qkv.rows(), in.qkv.cols(), in.qkv.ld() - in.qkv.cols());
  cpu::attention_backward(in.backward_arguments(dqkv));
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
      return std::pair(reference_of(in), bf16s ? reference_of(in, epsilon<bf16> / 2) : Reference());
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
      cpu::attention_forward(in.forward_arguments(without_lse, nullptr));
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
  run(in.forward_arguments(out, lse.data()));
  run(in.forward_arguments(again, nullptr));
  finish(queue);
  ASSERT_TRUE(check(out, want.out));
  ASSERT_TRUE(check(lse, want.lse));
  ASSERT_TRUE(identical(out, again));
}
template <class T, class Run>
void check_backward(const Operands<T>& in, const Reference& want, const Queue& queue,
                    const Run& run) {
  Buffer<T> dqkv(in.qkv.rows(), in.qkv.cols(), in.qkv.ld() - in.qkv.cols()), again = dqkv;
  for (Buffer<T>* to : {&dqkv, &again}) run(in.backward_arguments(*to));
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
  const Reference want = reference_of(in, std::is_same_v<T, bf16> ? epsilon<bf16> / 2 : 0);
  on_stream(queue, [&]<class Stream>(const Stream& stream) {
    const auto check_all = [&](const auto& versions, const auto& check_one) {
      for (const auto& version : versions) {
        if (version.number < first) continue;
        if (version.number > 1 && t.head_dim > gpu::kMaxTiledHeadDim) continue;
        SCOPED_TRACE(version.name);
        check_one([&](const auto& arguments) { version.run(arguments, stream); });
      }
    };
    check_all(gpu::attention_forward_versions<T, Stream>(),
              [&](const auto& run) { check_forward(in, want, queue, run); });
    check_all(gpu::attention_backward_versions<T, Stream>(),
              [&](const auto& run) { check_backward(in, want, queue, run); });
  });
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
    AttentionForward<bf16> arguments = in.forward_arguments(out, &in.lse(first, 0));
    arguments.qkv = &in.qkv(first * tokens, 0);
    arguments.out = &out(first * tokens, 0);
    arguments.shape.batch = images;
    OF_RUN(queue, attention_forward, arguments);
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
      const Reference want = reference_of(in, std::is_same_v<T, bf16> ? epsilon<bf16> / 2 : 0);
      Queue queue;
      queue.device = have_gpu() ? Device::cuda : Device::simt;
      check_forward(in, want, queue,
                    [&](const auto& arguments) { OF_RUN(queue, attention_forward, arguments); });
      check_backward(in, want, queue,
                     [&](const auto& arguments) { OF_RUN(queue, attention_backward, arguments); });
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
    const Reference want = reference_of(in, epsilon<bf16> / 2);
    const auto run = [&](Buffer<bf16>& out, float* lse) {
      return cuda::attention_forward_cudnn(in.forward_arguments(out, lse), queue.cuda);
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
    check_backward(in, want, queue, [&](const auto& arguments) {
      ASSERT_TRUE(cuda::attention_backward_cudnn(arguments, queue.cuda));
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
    const AttentionForward<bf16> forward{
        .qkv = qkv, .out = x.data(), .lse = lse, .shape = shape, .scale = 1};
    const AttentionBackward<bf16> backward{.qkv = qkv,
                                           .out = x.data(),
                                           .dout = x.data(),
                                           .lse = lse,
                                           .dqkv = x.data(),
                                           .shape = shape,
                                           .scale = 1};
    return cuda::attention_forward_cudnn(forward, {}) ||
           cuda::attention_backward_cudnn(backward, {});
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
  const auto run = [&](const AttentionShape& shape) {
    cpu::attention_forward(AttentionForward<float>{
        .qkv = x.data(), .out = x.data(), .lse = nullptr, .shape = shape, .scale = 1});
  };
  EXPECT_THROW(run({1, 2, 1, 257, x.ld(), 257}), Error);
  EXPECT_THROW(run({1, 2, 1, 8, 23, 8}), Error);
}

// The budget notices one key that is left out of one query's softmax.
TEST(AttentionChecker, NoticesAMissingKey) {
  Operands<float> in({1, 197, 1, 64});
  const Reference want = reference_of(in);
  forward(in, in.out, in.lse);
  ASSERT_TRUE(check(in.out, want.out));
  const double p = 1.0 / 197;
  for (int64_t c = 0; c < 64; ++c) in.out(100, c) = float(in.out(100, c) - p * in.qkv(7, 128 + c));
  EXPECT_FALSE(check(in.out, want.out));
}

}  // namespace
}  // namespace orthofed
