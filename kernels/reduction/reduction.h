// The sum of a long vector: out = x[0] + ... + x[n-1]. The smallest problem in which threads must
// combine what they have, and so the first ladder to read: kernels/reduction/01 to 05.
// Instantiated for double, float and bf16. The order of additions depends on n alone.
//
// Error, with e = eps of Accum<T>: e/2 (k sum |x_j| + |out|), where k is the number of additions in
// Accum<T> that one element passes through: min(n, 4096)/16 + 4 on the CPU, max(64, n/2^18) + 9 on
// a GPU. What follows is added in double.
// Reads sizeof(T) bytes an element and adds once: bounded by memory on every device.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/core/cost.h"
#include "kernels/core/types.h"
#include "kernels/core/version.h"

namespace orthofed {

// Scratch on a GPU: reduction_sum_scratch(n) bytes, enough for every version.
template <class T>
struct ReductionSum {
  const T* x;     // [n]
  int64_t n;      // 0: the sum is 0
  Accum<T>* out;  // one number
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void reduction_sum(const ReductionSum<T>& a);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost reduction_sum(const ReductionSum<T>& a) {
  return {double(a.n), moved(a.x, a.n) + written(a.out, 1)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void reduction_sum(const ReductionSum<T>& a, const Stream& stream);

inline size_t reduction_sum_scratch(int64_t n) {
  return size_t((n + 255) / 256) * sizeof(float);
}

// Every version of it, the naive one first.
template <class T, class Stream>
Ladder<ReductionSum<T>, Stream> reduction_sum_versions();

}  // namespace orthofed::gpu
