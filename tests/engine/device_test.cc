// Tensors on another device: what host code may do with them, and what stops it from doing more.
#include "engine/tensor/device.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "engine/tensor/allocator.h"
#include "engine/tensor/graph.h"
#include "engine/tensor/tensor.h"
#include "engine/tensor/upload.h"
#include "engine/tensor/watch.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/simt/memory.h"
#include "tests/support/files.h"

namespace orthofed {
namespace {

// Host code that looks into the emulated device's memory stops the program from here on.
[[maybe_unused]] const bool guarded = [] {
  simt::guard_memory();
  return true;
}();

TEST(OnDevice, GovernsWhereTensorsGo) {
  EXPECT_EQ(Tensor::zeros({2, 3}, DType::f32).device(), Device::cpu);
  {
    const OnDevice scope(Device::simt);
    const Tensor t = Tensor::zeros({2, 3}, DType::f32);
    EXPECT_EQ(t.device(), Device::simt);
    EXPECT_EQ(t.clone().device(), Device::simt);
    {
      const OnDevice inner(Device::cpu);
      EXPECT_EQ(Tensor::zeros({1}, DType::f32).device(), Device::cpu);
    }
    std::thread([] { EXPECT_EQ(queue().device, Device::cpu); }).join();
    EXPECT_EQ(queue().device, Device::simt);
  }
  EXPECT_EQ(queue().device, Device::cpu);
}

TEST(OnDevice, RefusesADeviceThatIsNotThere) {
  if (available(Device::cuda)) return;  // no skip: on a machine with a GPU those are failures
  EXPECT_TRUE(test::user_error([] { OnDevice scope(Device::cuda); }, {"cuda", "device cpu"}));
}

TEST(DeviceTensor, ValuesGoThereAndBack) {
  const OnDevice scope(Device::simt);
  for (const DType dtype : {DType::f32, DType::bf16, DType::i32, DType::u8}) {
    SCOPED_TRACE(name_of(dtype));
    const Tensor t = Tensor::of(std::vector<float>{1, 2, 3, 4, 5, 6}, {2, 3}).to(dtype);
    EXPECT_EQ(t.device(), Device::simt);
    EXPECT_EQ(t.to_vector(), (std::vector<double>{1, 2, 3, 4, 5, 6}));
    EXPECT_EQ(t.columns(1, 3).to_vector(), (std::vector<double>{2, 3, 5, 6}));
    EXPECT_EQ(t.on(Device::cpu).on(Device::simt).to_vector(), t.to_vector());
    t.row_range(1, 2).fill(7);
    EXPECT_EQ(t.contiguous().to_vector(), (std::vector<double>{1, 2, 3, 7, 7, 7}));
    EXPECT_EQ(t.row_range(0, 1).columns(1, 2).item(), 2);
  }
  const Tensor a = Tensor::full({2, 3}, DType::f32, 2), b = Tensor::full({2, 3}, DType::f32, 0.5);
  a.add(b);
  EXPECT_EQ(a.to_vector(), std::vector<double>(6, 2.5));
  EXPECT_TRUE(a.all_finite());
  a.fill(INFINITY);
  EXPECT_FALSE(a.all_finite());
}

TEST(DeviceTensor, PaddingIsZero) {
  const OnDevice scope(Device::simt);
  const Tensor t = Tensor::empty({3, 5}, DType::f32);
  const Tensor whole = Tensor::view(nullptr, t.raw(), {3, t.pitch()}, DType::f32, 0, Device::simt);
  EXPECT_EQ(whole.columns(5, 8).to_vector(), std::vector<double>(9, 0));
}

// Whoever writes to what is on its way, or reads what has not arrived, is found out.
TEST(DeviceTensor, AnUploadIsMadeAsLateAsItMayBe) {
  const OnDevice scope(Device::simt);
  const Tensor from = upload_buffer(5, Device::simt);
  const Tensor to = Tensor::zeros({5}, DType::u8);
  Upload upload(Device::simt);
  from.fill(1);
  upload.start(to, from);
  EXPECT_EQ(to.to_vector(), std::vector<double>(5, 0));
  from.fill(2);  // too early
  upload.join();
  EXPECT_EQ(to.to_vector(), std::vector<double>(5, 2));
  upload.start(to, from);
  EXPECT_THROW(upload.start(to, from), Error);
  upload.finish();
  from.fill(3);
  EXPECT_EQ(to.to_vector(), std::vector<double>(5, 2));
  upload.join();  // nothing is on its way
  EXPECT_EQ(to.to_vector(), std::vector<double>(5, 2));
  EXPECT_THROW(upload.start(from, to), Error);
}

TEST(DeviceTensor, BlocksAreReused) {
  const OnDevice scope(Device::simt);
  { const Tensor t = Tensor::zeros({100, 100}, DType::f32); }
  const int64_t before = allocator_stats(Device::simt).heap_allocations;
  { const Tensor t = Tensor::zeros({100, 100}, DType::f32); }
  EXPECT_EQ(allocator_stats(Device::simt).heap_allocations, before);
}

TEST(DeviceTensor, ScratchGrowsAndStays) {
  const OnDevice scope(Device::simt);
  const Scratch small = queue_with_scratch(1000).simt.scratch;
  EXPECT_GE(small.bytes, 1000u);
  EXPECT_EQ(queue_with_scratch(10).simt.scratch.data, small.data);
  EXPECT_GE(queue_with_scratch(1 << 20).simt.scratch.bytes, size_t{1} << 20);
}

// x += rate x, through a temporary tensor; rate [1] on the device.
void grow(const Tensor& x, const Tensor& rate) {
  const Tensor t = x.clone();
  OF_RUN(queue_of(t), scale,
         Scale<float>{.factor = rate.data<float>(),
                      .y = t.data<float>(),
                      .ldy = t.pitch(),
                      .rows = t.rows(),
                      .cols = t.cols()});
  x.add(t);
}

// Values of x after six runs of a step whose rate changes. Between them memory of the same sizes
// changes hands, and another key runs.
std::vector<double> after_six(bool captured,
                              const std::function<void(const Tensor&, const Tensor&, double)>& step,
                              StepGraphs::Counts* counts = nullptr) {
  StepGraphs graphs(Device::simt);
  const Tensor x = Tensor::full({3, 37}, DType::f32, 1), y = Tensor::full({3, 37}, DType::f32, 1);
  const Tensor rate = Tensor::zeros({1}, DType::f32);
  for (int i = 0; i < 6; ++i) {
    const double now = 0.1 * (i + 1);
    rate.copy_from(Tensor::full({1}, DType::f32, now));
    for (const Tensor& t : {x, y}) {
      const auto run = [&] { step(t, rate, now); };
      captured ? graphs.run({t.raw() == x.raw()}, run) : run();
      for (int others = 0; others < 3; ++others) Tensor::full({3, 37}, DType::f32, NAN);
    }
  }
  EXPECT_EQ(x.to_vector(), y.to_vector());
  if (counts != nullptr) *counts = graphs.counts();
  return x.to_vector();
}

TEST(StepGraphs, AReplayedStepIsTheStep) {
  const OnDevice scope(Device::simt);
  const auto step = [](const Tensor& x, const Tensor& rate, double) { grow(x, rate); };
  StepGraphs::Counts counts;
  EXPECT_EQ(after_six(true, step, &counts), after_six(false, step));
  EXPECT_EQ(counts.ordinary, 2);
  EXPECT_EQ(counts.captured, 2);
  EXPECT_EQ(counts.replayed, 8);
}

// What a test that compares replayed steps with ordinary ones must see.
TEST(StepGraphs, ANumberPassedByValueIsFrozen) {
  const OnDevice scope(Device::simt);
  const auto step = [](const Tensor& x, const Tensor&, double rate) {
    grow(x, Tensor::full({1}, DType::f32, rate));
  };
  EXPECT_NE(after_six(true, step), after_six(false, step));
}

TEST(StepGraphs, WhatAReplayWouldNotDoIsRefused) {
  const OnDevice scope(Device::simt);
  const Tensor x = Tensor::full({1}, DType::f32, 2);
  int64_t elements = 100;
  std::optional<Tensor> kept;
  struct Planted {
    const char *name, *message;
    std::function<void()> step;
  };
  const std::vector<Planted> all = {
      {"read", "a copy of 4 bytes from simt to cpu, in blocks.0.proj", [&] { x.item(); }},
      {"upload", "a copy of 8 bytes from cpu to simt",
       [&] {
         x.copy_from(Tensor::of(std::vector<float>{2, 1}, {2}).columns(0, 1));
       }},
      {"memory", "of memory", [&] { Tensor::empty({elements *= 100}, DType::f32); }},
      {"scratch", "of memory", [&] { queue_with_scratch(size_t(elements *= 100)); }},
      {"lasting memory", "of memory",
       [&] {
         const LastingMemory lasting;
         x.clone();
       }},
      {"leftover", "1 tensors outlive the step", [&] { kept = x.clone(); }},
  };
  for (const Planted& bug : all) {
    SCOPED_TRACE(bug.name);
    StepGraphs graphs(Device::simt);
    set_watched_layer("blocks.0.proj");
    std::string message;
    const auto run = [&] {
      graphs.run({1}, [&] {
        x.fill(2);
        bug.step();
      });
    };
    try {
      run();
      run();
    } catch (const Error& error) {
      message = error.what();
    }
    EXPECT_NE(message.find(bug.message), std::string::npos) << message;
    EXPECT_EQ(graphs.counts().replayed, 0);
    kept.reset();
    EXPECT_EQ(x.item(), 2);  // the thread's own queue is back
    EXPECT_FALSE(queue().capturing());
  }
  set_watched_layer("");
}

TEST(DeviceTensorDeathTest, HostCodeMayNotLookInside) {
  const OnDevice scope(Device::simt);
  const Tensor t = Tensor::zeros({4}, DType::f32);
  EXPECT_DEATH(std::printf("%f\n", double(t.data<float>()[0])), "");
}

}  // namespace
}  // namespace orthofed
