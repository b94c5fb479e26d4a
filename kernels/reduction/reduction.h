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
#include <span>

#include "kernels/core/cost.h"
#include "kernels/core/types.h"
#include "kernels/core/version.h"

namespace orthofed::cpu {

// x [n]; out: one element. n = 0 gives 0.
template <class T>
void reduction_sum(const T* x, int64_t n, Accum<T>* out);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost reduction_sum(const T* x, int64_t n, Accum<T>* out) {
  return {double(n), moved(x, n) + written(out, 1)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

// Scratch: reduction_sum_scratch(n) bytes, enough for every version.
template <class T, class Stream>
void reduction_sum(const T* x, int64_t n, Accum<T>* out, const Stream& stream);
inline size_t reduction_sum_scratch(int64_t n) {
  return size_t((n + 255) / 256) * sizeof(float);
}

// Every version of it, the naive one first.
template <class T, class Stream>
using ReductionSumRun = void(const T* x, int64_t n, Accum<T>* out, const Stream& stream);
template <class T, class Stream>
std::span<const Version<ReductionSumRun<T, Stream>>> reduction_sum_versions();

}  // namespace orthofed::gpu
