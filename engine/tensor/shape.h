// A shape is the extents of a tensor: up to five, row-major.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/core/check.h"

namespace orthofed {

class Shape {
 public:
  static constexpr int kMaxRank = 5;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(dims.begin(), int(dims.size())) {}
  Shape(const int64_t* dims, int rank) : rank_(rank) {
    OF_CHECK(rank <= kMaxRank, "at most five dimensions");
    for (int i = 0; i < rank; ++i) {
      OF_CHECK(dims[i] >= 0, "a dimension is negative");
      dims_[size_t(i)] = dims[i];
    }
  }

  int rank() const { return rank_; }
  // Negative i counts from the end.
  int64_t operator[](int i) const { return dims_[size_t(i < 0 ? i + rank_ : i)]; }
  int64_t cols() const { return rank_ == 0 ? 1 : dims_[size_t(rank_ - 1)]; }
  int64_t rows() const {
    int64_t n = 1;
    for (int i = 0; i + 1 < rank_; ++i) n *= dims_[size_t(i)];
    return n;
  }
  int64_t size() const { return rows() * cols(); }
  bool operator==(const Shape& other) const { return rank_ == other.rank_ && dims_ == other.dims_; }
  std::string str() const;  // "[32, 197, 192]"

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

}  // namespace orthofed
