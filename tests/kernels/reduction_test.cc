#include "kernels/reduction/reduction.h"

#include <algorithm>
#include <cmath>

#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/random.h"

namespace orthofed::test {
namespace {

// Around a warp, a block, a chunk of the CPU's, and the 16,384 elements beyond which several blocks
// share a vector.
constexpr int64_t kSizes[] = {0, 1, 7, 32, 33, 255, 257, 4097, 16384, 16389};

template <class T>
class Reduction : public testing::Test {};
using Types = testing::Types<double, float, bf16>;
TYPED_TEST_SUITE(Reduction, Types);

// run(arguments) twice, on x[offset, offset + n): within the budget of reduction.h, and the same
// bits.
template <class T, class Run>
void check(int64_t n, int64_t offset, double k, const Queue& queue, const Run& run) {
  SCOPED_TRACE(testing::Message() << n << " elements from " << offset);
  Buffer<T> x(1, offset + n);
  fill_normal(x, 1, 0.3);
  double want = 0, size = 0;
  for (int64_t j = offset; j < offset + n; ++j) {
    want += double(x(0, j));
    size += std::abs(double(x(0, j)));
  }
  Buffer<Accum<T>> first(1, 1), second(1, 1);
  run(ReductionSum<T>{.x = x.data() + offset, .n = n, .out = first.data()});
  run(ReductionSum<T>{.x = x.data() + offset, .n = n, .out = second.data()});
  finish(queue);
  const double unit = std::max(epsilon<Accum<T>>, 0x1p-40) / 2;  // the reference errs, too
  EXPECT_TRUE(close(first, {want}, Budget{unit, unit * k * size}));
  EXPECT_TRUE(identical(first, second));
}

double additions(const Queue& queue, int64_t n) {
  return queue.device == Device::cpu ? double(std::min<int64_t>(n, 4096)) / 16 + 4
                                     : std::max(64.0, double(n) * 0x1p-18) + 9;
}

template <class T>
void check_device(int64_t n, int64_t offset, const Queue& queue) {
  const WithScratch at(queue, gpu::reduction_sum_scratch(n));
  check<T>(n, offset, additions(queue, n), at,
           [&](const auto& arguments) { OF_RUN(at, reduction_sum, arguments); });
}

TYPED_TEST(Reduction, EveryDevice) {
  for_each_device<TypeParam>([](const Queue& queue) {
    for (const int64_t n : kSizes)
      for (const int64_t offset : {0, 3}) check_device<TypeParam>(n, offset, queue);
  });
}

TYPED_TEST(Reduction, EveryVersion) {
  using T = TypeParam;
  if constexpr (gpu_computes<T>) {
    for_each_gpu([](const Queue& queue) {
      for (const int64_t n : kSizes) {
        const WithScratch at(queue, gpu::reduction_sum_scratch(n));
        on_stream(at, [&]<class Stream>(const Stream& stream) {
          for (const auto& version : gpu::reduction_sum_versions<T, Stream>()) {
            SCOPED_TRACE(version.name);
            if (version.number <= 2 && n > 1000) continue;  // the same blocks, only more of them
            check<T>(n, 0, additions(queue, n), at,
                     [&](const auto& arguments) { version.run(arguments, stream); });
          }
        });
      }
    });
  }
}

// Long enough for all 256 parts of the CPU's sum, and for all 1,024 blocks of a GPU's. (The
// emulator would take long, and has seen every line of it by now.)
TEST(ReductionSum, LongVector) {
  check_device<float>(256 * 4096 + 12345, 0, Queue{});
  for (const auto& [name, queue] : gpu_like_queues())
    if (queue.device == Device::cuda) check_device<float>(1024 * 64 * 256 + 12345, 0, queue);
}

// The sum of the CPU does not depend on the number of threads.
TEST(ReductionSum, ThreadsDoNotMatter) {
  const int threads = cpu::threads();
  Buffer<float> x(1, 100003), one(1, 1), two(1, 1);
  fill_normal(x, 2);
  cpu::set_threads(1);
  cpu::reduction_sum(ReductionSum<float>{.x = x.data(), .n = x.cols(), .out = one.data()});
  cpu::set_threads(2);
  cpu::reduction_sum(ReductionSum<float>{.x = x.data(), .n = x.cols(), .out = two.data()});
  cpu::set_threads(threads);
  EXPECT_TRUE(identical(one, two));
}

TEST(ReductionSum, NanIsNotLost) {
  for_each_device<float>([](const Queue& queue) {
    Buffer<float> x(1, 5000), out(1, 1);
    x.fill(1);
    x(0, 4999) = NAN;
    const WithScratch at(queue, gpu::reduction_sum_scratch(x.cols()));
    OF_RUN(at, reduction_sum, ReductionSum<float>{.x = x.data(), .n = x.cols(), .out = out.data()});
    finish(at);
    EXPECT_TRUE(std::isnan(out(0, 0)));
  });
}

}  // namespace
}  // namespace orthofed::test
