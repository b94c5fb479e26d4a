// A Buffer is a matrix as kernels see it, set up to catch what they must not do: its rows have a
// pitch, and padding and surroundings are filled with all-ones bytes, which are NaN in every
// floating-point type here. Reading them poisons a result, writing them shows in verify(), and an
// output that is not written stays NaN.
#pragma once
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "tests/support/memory.h"

namespace orthofed::test {

template <class T>
class Buffer {
 public:
  // [rows, cols], row pitch cols + padding elements; the first row is 64-byte aligned.
  Buffer(int64_t rows, int64_t cols, int64_t padding = 0)
      : rows_(rows), cols_(cols), ld_(cols + padding) {
    bytes_ = allocate_shared(total());
    std::memset(bytes_.get(), 0xff, total());
  }
  Buffer(const Buffer& other) : Buffer(other.rows_, other.cols_, other.ld_ - other.cols_) {
    std::memcpy(bytes_.get(), other.bytes_.get(), total());
  }
  Buffer(Buffer&&) noexcept = default;
  Buffer& operator=(Buffer other) noexcept {
    std::swap(rows_, other.rows_);
    std::swap(cols_, other.cols_);
    std::swap(ld_, other.ld_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  T* data() { return reinterpret_cast<T*>(bytes_.get() + kCanary); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.get() + kCanary); }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t ld() const { return ld_; }
  T& operator()(int64_t i, int64_t j) { return data()[i * ld_ + j]; }
  const T& operator()(int64_t i, int64_t j) const { return data()[i * ld_ + j]; }

  void fill(T value) {
    for (int64_t i = 0; i < rows_; ++i)
      for (int64_t j = 0; j < cols_; ++j) (*this)(i, j) = value;
  }

  // The elements without padding, row by row, as a reference in double reads them.
  std::vector<double> to_double() const {
    std::vector<double> dense;  // [rows * cols]
    dense.reserve(static_cast<size_t>(rows_ * cols_));
    for (int64_t i = 0; i < rows_; ++i)
      for (int64_t j = 0; j < cols_; ++j) dense.push_back(static_cast<double>((*this)(i, j)));
    return dense;
  }

  // Are the bytes before, after and between the rows untouched?
  testing::AssertionResult verify() const {
    const std::byte* begin = bytes_.get();
    const std::byte* end = begin + total();
    const std::byte* p = begin;
    for (int64_t i = 0; i <= rows_; ++i) {
      const auto* row = reinterpret_cast<const std::byte*>(data() + i * ld_);
      for (const std::byte* gap_end = i < rows_ ? row : end; p < gap_end; ++p) {
        if (*p != std::byte{0xff})
          return testing::AssertionFailure()
                 << "byte " << p - reinterpret_cast<const std::byte*>(data())
                 << " from the first element lies outside the matrix and was written ([" << rows_
                 << ", " << cols_ << "] of " << sizeof(T) << " bytes, pitch " << ld_ << ")";
      }
      p = row + cols_ * int64_t{sizeof(T)};
    }
    return testing::AssertionSuccess();
  }

 private:
  static constexpr size_t kCanary = 64;
  size_t total() const { return 2 * kCanary + static_cast<size_t>(rows_ * ld_) * sizeof(T); }

  int64_t rows_, cols_, ld_;
  SharedMemory bytes_;
};

// The same values in another element type, rounded once.
template <class To, class From>
Buffer<To> convert(const Buffer<From>& from, int64_t padding = 0) {
  Buffer<To> to(from.rows(), from.cols(), padding);
  for (int64_t i = 0; i < from.rows(); ++i)
    for (int64_t j = 0; j < from.cols(); ++j) to(i, j) = To(from(i, j));
  return to;
}

}  // namespace orthofed::test
