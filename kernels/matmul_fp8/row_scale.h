// What both sides of matmul_fp8 share: a row's scale, and what operands must be.
#pragma once
#include <cstdint>

#include "kernels/core/check.h"
#include "kernels/core/host_device.h"
#include "kernels/matmul_fp8/matmul_fp8.h"

namespace orthofed {

// Of a row whose largest magnitude is `largest`: what its numbers are multiplied by, and what takes
// them back. NaN stays NaN; infinity gives the inverse 0, and infinity * 0 is NaN again.
struct RowScale {
  float scale, inverse;
};
OF_HOST_DEVICE inline RowScale row_scale(float largest) {
  constexpr float kLargest = 448.0f, kSmallest = 448.0f * 0x1p-126f;
  if (largest < kSmallest) return {1.0f, 1.0f};  // scale and inverse would leave float's range
  return {largest / kLargest, kLargest / largest};
}

// Of quantised rows of k numbers: the least that is allowed, and how far zeros go.
OF_HOST_DEVICE constexpr int64_t quantised_pitch(int64_t k) {
  return (k + 15) / 16 * 16;
}

inline void check_quantised(const e4m3* q, int64_t ldq, int64_t k) {
  OF_CHECK(reinterpret_cast<uintptr_t>(q) % 16 == 0 && ldq % 16 == 0 && ldq >= k,
           "FP8: rows do not lie on 16 bytes");
}

inline void check_fp8_product(const e4m3* a, const e4m3* b, const MatmulShape& s) {
  OF_CHECK(s.op_a == Op::none && s.op_b == Op::transpose, "FP8: operands lie along k");
  OF_CHECK(s.m >= 0 && s.n >= 0 && s.k >= 0 && s.ldc >= s.n, "FP8: a size or a pitch");
  check_quantised(a, s.lda, s.k);
  check_quantised(b, s.ldb, s.k);
}

}  // namespace orthofed
