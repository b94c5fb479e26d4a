// The shadow and the finite check, on kernels that are wrong on purpose.
#include "engine/tensor/watch.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/tensor/profile.h"
#include "engine/tensor/tensor.h"
#include "kernels/simt/memory.h"

namespace orthofed {

struct Listed {
  static constexpr bool holds_pointers = true;
};
inline int cpu_calls = 0;

// y = 2 x, except where the device's kernel is told to err.
namespace cpu {
template <class T>
void twice(const T* x, T* y, int64_t n, double) {
  for (int64_t i = 0; i < n; ++i) y[i] = T(2 * float(x[i]));
}
template <class T, class List>
void set_listed(const List&, T* y) {
  ++cpu_calls;
  *y = 2;
}
}  // namespace cpu
namespace gpu {
template <class T, class Stream>
void twice(const T* x, T* y, int64_t n, double error, const Stream&) {
  const simt::OpenMemory open;
  for (int64_t i = 0; i < n; ++i) y[i] = T(2 * float(x[i]) + (i == 3 ? float(error) : 0.0f));
}
template <class T, class List, class Stream>
void set_listed(const List&, T* y, const Stream&) {
  const simt::OpenMemory open;
  *y = 1;
}
}  // namespace gpu
namespace cost {
template <class T>
Cost twice(const T* x, T* y, int64_t n, double) {
  return {double(n), moved(x, n) + written(y, n)};
}
template <class T, class List>
Cost set_listed(const List&, T* y) {
  return {0, written(y, 1)};
}
}  // namespace cost

namespace {

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

testing::AssertionResult contains(const std::string& text,
                                  std::initializer_list<const char*> parts) {
  for (const char* part : parts)
    if (text.find(part) == std::string::npos)
      return testing::AssertionFailure() << "'" << part << "' is not in '" << text << "'";
  return testing::AssertionSuccess();
}

class WatchTest : public testing::Test {
 protected:
  std::string call(std::unique_ptr<Watch> watch, double error, DType dtype = DType::f32) {
    const OnDevice scope(Device::simt);
    Queue q = queue();
    q.watch = watch.get();
    set_watched_layer("blocks.0.attn.qkv");
    const Tensor x = Tensor::of(std::vector<float>{1, 2, 3, 4, 5}, {5}).to(dtype);
    const Tensor y = Tensor::full({8}, dtype, 7);
    return message_of([&] {
      if (dtype == DType::f32)
        of_on(q, twice, float)(x.data<float>(), y.data<float>() + 1, int64_t{5}, error);
      else
        of_on(q, twice, bf16)(x.data<bf16>(), y.data<bf16>() + 1, int64_t{5}, error);
      const std::vector<double> got = y.to_vector();  // the device's result stays
      EXPECT_EQ(got[0], 7);
      EXPECT_EQ(got[1], 2);
      EXPECT_EQ(got[6], 7);
    });
  }
  static Queue simt_queue() {
    const OnDevice scope(Device::simt);
    return queue();
  }
};

TEST_F(WatchTest, ShadowFindsTheElementThatDiffers) {
  EXPECT_EQ(call(make_shadow(simt_queue()), 0), "");
  EXPECT_EQ(call(make_shadow(simt_queue()), 1e-6), "");
  EXPECT_TRUE(contains(call(make_shadow(simt_queue()), 0.01),
                       {"twice on simt in blocks.0.attn.qkv", " 5", "element 4", "8"}));
  EXPECT_TRUE(contains(call(make_shadow(simt_queue()), NAN), {"element 4", "nan"}));
  EXPECT_EQ(call(make_shadow(simt_queue()), 0.01, DType::bf16), "");
  EXPECT_TRUE(contains(call(make_shadow(simt_queue()), 1, DType::bf16), {"element 4"}));
}

TEST_F(WatchTest, FiniteCheckFindsTheFirstNan) {
  EXPECT_EQ(call(make_finite_check(simt_queue()), 1), "");
  EXPECT_TRUE(
      contains(call(make_finite_check(simt_queue()), NAN), {"twice on simt", "element 4", "nan"}));
  EXPECT_TRUE(contains(call(make_finite_check(simt_queue()), INFINITY), {"inf"}));
}

// A list's pointers are the device's: the CPU's kernel must not run on it, let alone be compared.
TEST_F(WatchTest, ArgumentsWithPointersInsideAreLeftAlone) {
  const OnDevice scope(Device::simt);
  const Tensor y = Tensor::full({1}, DType::f32, 7);
  Queue q = queue();
  const auto shadow = make_shadow(q);
  q.watch = shadow.get();
  of_on(q, set_listed, float, Listed)(Listed{}, y.data<float>());
  EXPECT_EQ(y.item(), 1);
  EXPECT_EQ(cpu_calls, 0);
  EXPECT_NE(message_of([&] { of_on(q, set_listed, float, int)(1, y.data<float>()); }), "");
  EXPECT_EQ(cpu_calls, 1);
}

// Two steps after those that warm up: each with a layer, a call in it, a call outside, and a span.
TEST_F(WatchTest, ProfileRowsAddUpToTheStep) {
  const OnDevice scope(Device::simt);
  const Tensor x = Tensor::full({5}, DType::f32, 1), y = Tensor::full({8}, DType::f32, 7);
  const auto call = [&] {
    of_on(queue(), twice, float)(x.data<float>(), y.data<float>(), int64_t{5}, 0.0);
  };
  Profile profile(queue(), Ceilings{1e9, 1e9}, 2);
  EXPECT_EQ(profiling(), nullptr);
  for (int64_t step = 0; step < Profile::kWarmUp + 4; ++step) {
    profile.step();
    EXPECT_EQ(profiling() != nullptr, step == Profile::kWarmUp || step == Profile::kWarmUp + 1);
    {
      const Span forward("forward");
      const Span layer("blocks.3.attn.\"qkv\".weight", Profile::Kind::part);
      call();
      call();
    }
    const Span copy("copying", Profile::Kind::work, {0, 100});
    if (step > Profile::kWarmUp) call();  // a call within work is not counted twice
  }
  profile.finish();
  EXPECT_EQ(queue().watch, nullptr);
  EXPECT_EQ(profile.steps(), 2);

  const std::vector<Profile::Row> rows = profile.rows();
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_EQ(rows.back().name, "between kernels");
  double sum = 0;
  for (const Profile::Row& r : rows) {
    sum += r.seconds;
    EXPECT_GE(r.seconds, 0) << r.name;
    if (r.name == "twice" && !r.where.starts_with("forward")) {
      EXPECT_EQ(r.calls, 0.5);
    }
    if (r.name == "copying") {
      EXPECT_EQ(r.cost.bytes, 100);
    }
    if (r.where != "forward attn.\"qkv\"") continue;
    EXPECT_EQ(r.calls, 2);
    EXPECT_EQ(r.cost.flops, 10);
    EXPECT_EQ(r.cost.bytes, 80);
  }
  EXPECT_NEAR(sum, profile.step_seconds(), 1e-9);
  EXPECT_NE(profile.trace_json().find("attn.\\\"qkv\\\""), std::string::npos);
  EXPECT_NE(profile.trace_json().find("\"sizes\": \"5 0\", \"flops\": 5, \"bytes\": 40"),
            std::string::npos)
      << profile.trace_json();
}

TEST_F(WatchTest, CeilingsArePositiveAndBoundACost) {
  const OnDevice scope(Device::simt);
  const Ceilings c = measure_ceilings(DType::f32);
  EXPECT_GT(c.bytes, 0);
  EXPECT_GT(c.flops, 0);
  EXPECT_EQ((Ceilings{4, 2}.seconds({8, 1})), 2);
  EXPECT_EQ((Ceilings{4, 2}.seconds({1, 8})), 4);
}

}  // namespace
}  // namespace orthofed
