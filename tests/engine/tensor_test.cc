#include "engine/tensor/tensor.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/tensor/allocator.h"

namespace orthofed {
namespace {

TEST(Tensor, RowsStartOnSixteenBytesAndPaddingIsZero) {
  for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i32, DType::u8}) {
    for (int64_t cols : {1, 3, 4, 5, 17}) {
      const Tensor t = Tensor::full({3, cols}, dtype, 1);
      EXPECT_EQ(t.pitch() * int64_t(size_of(dtype)) % 16, 0);
      const auto* bytes = static_cast<const unsigned char*>(t.raw());
      for (int64_t r = 0; r < 3; ++r)
        for (size_t b = size_t(r * t.pitch() + cols) * size_of(dtype);
             b < size_t((r + 1) * t.pitch()) * size_of(dtype); ++b)
          EXPECT_EQ(bytes[b], 0) << name_of(dtype) << " " << cols;
    }
  }
}

TEST(Tensor, ViewsShareStorage) {
  const Tensor qkv = Tensor::zeros({4, 6}, DType::f32);
  qkv.columns(2, 4).fill(5);
  EXPECT_EQ(qkv.to_vector(), (std::vector<double>{0, 0, 5, 5, 0, 0, 0, 0, 5, 5, 0, 0,
                                                  0, 0, 5, 5, 0, 0, 0, 0, 5, 5, 0, 0}));
  qkv.row_range(1, 3).fill(7);
  EXPECT_EQ(qkv.row<float>(1)[0], 7);
  EXPECT_EQ(qkv.row<float>(3)[0], 0);
  Tensor view = qkv.columns(0, 1);
  { const Tensor gone = view; }
  EXPECT_EQ(view.row<float>(2)[0], 7);  // the storage lives as long as a view of it
}

TEST(Tensor, ReshapeKeepsTheOrder) {
  const Tensor t = Tensor::of(std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8}, {2, 4});
  EXPECT_EQ(t.reshape({4, 2}).to_vector(), t.to_vector());
  EXPECT_EQ(t.reshape({2, 2, 2}).shape().str(), "[2, 2, 2]");
  EXPECT_THROW(t.reshape({3, 3}), Error);
  const Tensor padded = Tensor::zeros({2, 3}, DType::f32);
  EXPECT_THROW(padded.reshape({3, 2}), Error);
  EXPECT_NO_THROW(padded.contiguous().reshape({3, 2}));
}

TEST(Tensor, ConversionsRoundOnce) {
  const std::vector<double> values = {0.1, -3.5, 1e-3, 65504, 1.0 / 3};
  const Tensor t = Tensor::of(values, {5});
  EXPECT_EQ(t.to(DType::f64).to_vector(), values);
  EXPECT_EQ(t.to(DType::f32).to_vector()[4], double(float(1.0 / 3)));
  EXPECT_EQ(t.to(DType::bf16).to_vector()[4], double(float(bf16(float(1.0 / 3)))));
  EXPECT_EQ(t.to(DType::f16).to(DType::f32).to_vector()[3], 65504);
  EXPECT_EQ(Tensor::of(std::vector<int32_t>{2000000011}, {1}).to(DType::f64).item(), 2000000011);
}

TEST(Tensor, NaNIsNotFinite) {
  for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
    const Tensor t = Tensor::zeros({2, 3}, dtype);
    EXPECT_TRUE(t.all_finite());
    t.row_range(1, 2).fill(NAN);
    EXPECT_FALSE(t.all_finite());
    t.row_range(1, 2).fill(INFINITY);
    EXPECT_FALSE(t.all_finite());
  }
}

TEST(Tensor, WrongTypesAndSizesAreErrors) {
  const Tensor t = Tensor::zeros({2, 3}, DType::f32);
  EXPECT_THROW(t.data<double>(), Error);
  EXPECT_THROW(t.copy_from(Tensor::zeros({3, 2}, DType::f32)), Error);
  EXPECT_THROW(t.add(Tensor::zeros({2, 3}, DType::f64)), Error);
  EXPECT_THROW(t.columns(2, 4), Error);
  EXPECT_THROW(t.item(), Error);
}

TEST(Tensor, EmptyOnes) {
  const Tensor none = Tensor::zeros({0, 3}, DType::f32);
  EXPECT_TRUE(none.defined());
  EXPECT_EQ(none.size(), 0);
  EXPECT_TRUE(none.clone().to_vector().empty());
  EXPECT_FALSE(Tensor().defined());
}

TEST(Allocator, ReusesBlocksOfTheSameSize) {
  { const Tensor warm = Tensor::empty({1000, 33}, DType::f32); }
  const AllocatorStats before = allocator_stats(Device::cpu);
  for (int i = 0; i < 10; ++i) {
    const Tensor t = Tensor::empty({1000, 33}, DType::f32);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.raw()) % 64, 0u);
  }
  EXPECT_EQ(allocator_stats(Device::cpu).heap_allocations, before.heap_allocations);
  EXPECT_EQ(allocator_stats(Device::cpu).bytes_in_use, before.bytes_in_use);
  release_cached(Device::cpu);
  { const Tensor t = Tensor::empty({1000, 33}, DType::f32); }
  EXPECT_EQ(allocator_stats(Device::cpu).heap_allocations, before.heap_allocations + 1);
}

TEST(Allocator, KeepsCountOfThePeak) {
  reset_peak(Device::cpu);
  const int64_t base = allocator_stats(Device::cpu).peak_bytes_in_use;
  { const Tensor t = Tensor::empty({1 << 20}, DType::u8); }
  EXPECT_GE(allocator_stats(Device::cpu).peak_bytes_in_use, base + (1 << 20));
  EXPECT_LE(allocator_stats(Device::cpu).bytes_in_use, base);
}

}  // namespace
}  // namespace orthofed
