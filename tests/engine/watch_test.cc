// The shadow and the finite check, on kernels that are wrong on purpose.
#include "engine/tensor/watch.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/ops/linear.h"
#include "engine/tensor/bytes.h"
#include "engine/tensor/profile.h"
#include "engine/tensor/tensor.h"
#include "kernels/grad_norm/grad_norm.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/orthogonality/orthogonality.h"
#include "kernels/simt/memory.h"

namespace orthofed {

// y = 2 x. Element 3 is off by `error` on a device.
template <class T>
struct Twice {
  const T* x;
  T* y;
  int64_t n;
  double error;
};
struct TwiceUntyped {
  const void* x;
  DType x_type;
  void* y;
  DType y_type;
  int64_t n;
  double error;
};
struct Row {
  const float* x = nullptr;
  float* y = nullptr;
  int64_t size = 0;
};
struct TwiceRows {  // a list of structs with pointers
  const Row* rows;
  int64_t count;
  double error;
};
struct TwiceFirst {  // a list of pointers, and pointers in a struct within the struct
  const float* const* xs;
  Row to;
  double error;
};
class Hidden {  // shows nothing
 public:
  explicit Hidden(const float* x) : x_(x) {}
  const float* x() const { return x_; }

 private:
  const float* x_;
};
struct SetHidden {
  const Hidden* list;
  float* y;
};
inline int cpu_calls = 0;

namespace cpu {
template <class T>
void twice(const Twice<T>& a) {
  for (int64_t i = 0; i < a.n; ++i) a.y[i] = T(2 * float(a.x[i]));
}
inline void twice_untyped(const TwiceUntyped& a) {
  twice(Twice<float>{static_cast<const float*>(a.x), static_cast<float*>(a.y), a.n, 0});
}
inline void twice_rows(const TwiceRows& a) {
  for (int64_t k = 0; k < a.count; ++k)
    twice(Twice<float>{a.rows[k].x, a.rows[k].y, a.rows[k].size, 0});
}
inline void twice_first(const TwiceFirst& a) {
  twice(Twice<float>{a.xs[0], a.to.y, a.to.size, 0});
}
inline void set_hidden(const SetHidden& a) {
  ++cpu_calls;
  *a.y = 2;
}
}  // namespace cpu
namespace gpu {
template <class T, class Stream>
void twice(const Twice<T>& a, const Stream&) {
  const simt::OpenMemory open;
  for (int64_t i = 0; i < a.n; ++i)
    a.y[i] = T(2 * float(a.x[i]) + (i == 3 ? float(a.error) : 0.0f));
}
template <class Stream>
void twice_untyped(const TwiceUntyped& a, const Stream& s) {
  twice(Twice<float>{static_cast<const float*>(a.x), static_cast<float*>(a.y), a.n, a.error}, s);
}
template <class Stream>
void twice_rows(const TwiceRows& a, const Stream& s) {
  const simt::OpenMemory open;
  for (int64_t k = 0; k < a.count; ++k)
    twice(Twice<float>{a.rows[k].x, a.rows[k].y, a.rows[k].size, k + 1 == a.count ? a.error : 0},
          s);
}
template <class Stream>
void twice_first(const TwiceFirst& a, const Stream& s) {
  const simt::OpenMemory open;
  twice(Twice<float>{a.xs[0], a.to.y, a.to.size, a.error}, s);
}
template <class Stream>
void set_hidden(const SetHidden& a, const Stream&) {
  const simt::OpenMemory open;
  *a.y = 1;
}
}  // namespace gpu
namespace cost {
template <class T>
Cost twice(const Twice<T>& a) {
  return {double(a.n), moved(a.x, a.n) + written(a.y, a.n)};
}
inline Cost twice_untyped(const TwiceUntyped&) {
  return {};
}
inline Cost twice_rows(const TwiceRows&) {
  return {};
}
inline Cost twice_first(const TwiceFirst&) {
  return {};
}
inline Cost set_hidden(const SetHidden&) {
  return {};
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

// A twin that is none would be the device's memory, which the CPU's kernels must not touch.
const bool guarded = (simt::guard_memory(), true);

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
        OF_RUN(q, twice, Twice<float>{x.data<float>(), y.data<float>() + 1, 5, error});
      else
        OF_RUN(q, twice, Twice<bf16>{x.data<bf16>(), y.data<bf16>() + 1, 5, error});
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

// Where the type is an argument, and where the pointers are in a list or in a struct of the struct.
TEST_F(WatchTest, SeesThroughTypesListsAndArguments) {
  const OnDevice scope(Device::simt);
  const Tensor x = Tensor::of(std::vector<float>{1, 2, 3, 4, 5}, {5});
  const Tensor y = Tensor::full({5}, DType::f32, 7), z = Tensor::full({5}, DType::f32, 7);
  const Tensor rows = bytes_of(std::vector<Row>{{x.data<float>(), y.data<float>(), 5},
                                                {nullptr, nullptr, 0},
                                                {x.data<float>(), z.data<float>(), 5}});
  const Tensor inputs = bytes_of(std::vector<const float*>{x.data<float>()});
  const auto calls = [&](std::unique_ptr<Watch> watch, double error) {
    Queue q = queue();
    q.watch = watch.get();
    const void* from = x.raw();
    return std::vector<std::string>{
        message_of([&] {
          OF_RUN(q, twice_untyped, TwiceUntyped{from, DType::f32, y.raw(), DType::f32, 5, error});
        }),
        message_of([&] {
          OF_RUN(q, twice_rows, TwiceRows{as<const Row>(rows), 3, error});
        }),
        message_of([&] {
          OF_RUN(q, twice_first,
                 TwiceFirst{as<const float* const>(inputs), {nullptr, y.data<float>(), 5}, error});
        })};
  };
  for (const std::string& message : calls(make_shadow(queue()), 0)) EXPECT_EQ(message, "");
  for (const std::string& message : calls(make_shadow(queue()), 0.01))
    EXPECT_TRUE(contains(message, {"twice_", "element 3", "8"}));
  for (const std::string& message : calls(make_finite_check(queue()), NAN))
    EXPECT_TRUE(contains(message, {"twice_", "element 3", "nan"}));
}

// Pointers that nobody shows are the device's: the CPU's kernel must not run on them.
TEST_F(WatchTest, WhatIsHiddenIsLeftAlone) {
  const OnDevice scope(Device::simt);
  const Tensor y = Tensor::full({1}, DType::f32, 7);
  const Tensor hidden = bytes_of(std::vector<Hidden>{Hidden(y.data<float>())});
  Queue q = queue();
  const auto shadow = make_shadow(q);
  q.watch = shadow.get();
  OF_RUN(q, set_hidden, SetHidden{as<const Hidden>(hidden), y.data<float>()});
  EXPECT_EQ(y.item(), 1);
  EXPECT_EQ(cpu_calls, 0);
}

// The kernels that take lists: their items show all that the CPU's twin reads, or it would stop at
// the device's memory, and both devices write the same.
TEST_F(WatchTest, ShadowFollowsTheListsThatThereAre) {
  const OnDevice scope(Device::simt);
  const auto numbers = [](int64_t n, double from) {
    std::vector<float> v;
    for (int64_t i = 0; i < n; ++i) v.push_back(float(std::sin(from + double(i))));
    return Tensor::of(v, {n});
  };
  constexpr int64_t n = 40;
  const Tensor p = numbers(n, 0), g = numbers(n, 1), m = numbers(n, 2),
               v = Tensor::full({n}, DType::f32, 1);
  const Tensor scalars = Tensor::of(std::vector<double>{0.1, 1, 0, 0}, {4});
  double* const rate = scalars.data<double>();
  const Tensor t = bytes_of(std::vector<int64_t>{3});
  Queue q = queue_with_scratch(1 << 16);
  const auto shadow = make_shadow(q);
  q.watch = shadow.get();

  const Tensor spans = bytes_of(std::vector<GradientSpan<float>>{{g.data<float>(), n}});
  OF_RUN(q, grad_norm,
         GradNorm<float>{.gradients = as<const GradientSpan<float>>(spans),
                         .count = 1,
                         .chunks = 1,
                         .scale = rate + 1,
                         .max_norm = 1.0,
                         .norm = rate + 2,
                         .factor = rate + 3});
  const Tensor list = bytes_of(std::vector<OptimizedTensor<float>>{
      {p.data<float>(), g.data<float>(), m.data<float>(), v.data<float>(), n, 0.1}});
  const auto* tensors = as<const OptimizedTensor<float>>(list);
  const double before = p.to_vector()[5];
  OF_RUN(q, adamw,
         AdamW<float>{
             .tensors = tensors,
             .count = 1,
             .chunks = 1,
             .step = AdamWStep{
                 .learning_rate = rate, .gradient_scale = rate + 3, .step = as<const int64_t>(t)}});
  OF_RUN(q, sgd,
         Sgd<float>{.tensors = tensors,
                    .count = 1,
                    .chunks = 1,
                    .step = SgdStep{.learning_rate = rate, .gradient_scale = rate + 3}});
  EXPECT_NE(p.to_vector()[5], before);

  const Tensor a = numbers(8, 3), b = numbers(8, 4), c = numbers(8, 5), d = numbers(8, 6);
  OrthogonalityLayer<float> layer{.in = 4, .out = 4, .rank_g = 2, .rank_p = 2};
  layer.a_g = a.data<float>(), layer.b_g = b.data<float>();
  layer.a_p = c.data<float>(), layer.b_p = d.data<float>();
  const Tensor layers = bytes_of(std::vector<OrthogonalityLayer<float>>{layer});
  OF_RUN(q, orthogonality_update,
         OrthogonalityPenalty<float>{.layers = as<const OrthogonalityLayer<float>>(layers),
                                     .count = 1,
                                     .weight = rate + 2,
                                     .values = rate});
  EXPECT_GT(scalars.to_vector()[0], 0);
}

TEST_F(WatchTest, FiniteCheckSeesPackedProducts) {
  const Tensor w = Tensor::full({3, 2}, DType::f32, INFINITY),
               x = Tensor::full({1, 2}, DType::f32, 1);
  const Linear layer(Var(w, false, "head.weight"), Var(), DType::f32);
  const auto check = make_finite_check(queue());
  watch_calls(check.get());
  EXPECT_TRUE(contains(message_of([&] { layer.forward(x, nullptr); }),
                       {"packed_matmul on cpu in head.weight", "inf"}));
  watch_calls(nullptr);
}

// Two steps after those that warm up: each with a layer, a call in it, a call outside, and a span.
// Both operands of a tail have twins, in the product and with a fused step.
TEST_F(WatchTest, ShadowFollowsTails) {
  const OnDevice scope(Device::simt);
  const auto numbers = [](const Shape& shape, DType dtype) {
    std::vector<double> v;
    for (int64_t i = 0; i < shape.size(); ++i) v.push_back(std::sin(double(i)));
    return Tensor::of(v, shape).to(dtype);
  };
  Linear layer(Var(numbers({24, 16}, DType::f32), false, "fc1.weight"), Var(), DType::bf16);
  layer.adapters.add(
      "fc1", 0, 24,
      {"adapter", Var(numbers({3, 16}, DType::f32)), Var(numbers({24, 3}, DType::f32)), 2});
  layer.set_strategy(AdapterStrategy::extended);
  const Tensor x = numbers({5, 16}, DType::bf16), dy = numbers({5, 24}, DType::bf16);
  const auto shadow = make_shadow(queue());
  watch_calls(shadow.get());
  const std::string stopped = message_of([&] {
    Linear::Saved saved;
    Tensor f;
    layer.forward(x, nullptr);
    layer.forward_gelu(x, GeluKind::erf, &saved, &f);
    layer.backward(dy, saved, /*need_dx=*/true);
  });
  watch_calls(nullptr);
  EXPECT_EQ(stopped, "");
}

TEST_F(WatchTest, ProfileRowsAddUpToTheStep) {
  const OnDevice scope(Device::simt);
  const Tensor x = Tensor::full({5}, DType::f32, 1), y = Tensor::full({8}, DType::f32, 7);
  const auto call = [&] {
    OF_RUN(queue(), twice, Twice<float>{x.data<float>(), y.data<float>(), 5, 0});
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
