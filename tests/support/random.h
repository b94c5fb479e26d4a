// Random inputs are functions of (seed, stream, position). The seed is printed once, so that a
// failure can be rerun.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "kernels/core/philox.h"
#include "tests/support/buffer.h"

namespace orthofed::test {

// The seed is fixed unless OF_SEED gives another.
inline uint64_t seed() {
  static const uint64_t value = [] {
    const char* wish = std::getenv("OF_SEED");
    const uint64_t s = wish != nullptr ? std::strtoull(wish, nullptr, 10) : 20251;
    std::printf("[   seed   ] OF_SEED=%llu\n", static_cast<unsigned long long>(s));
    return s;
  }();
  return value;
}

// Every tensor of a test takes its own stream number.
template <class T>
void fill_uniform(Buffer<T>& buffer, uint64_t stream, double low, double high) {
  const Philox rng = PhiloxKey(seed()).with(stream);
  for (int64_t i = 0; i < buffer.rows(); ++i)
    for (int64_t j = 0; j < buffer.cols(); ++j) {
      const double u = uniform01(rng(static_cast<uint64_t>(i * buffer.cols() + j))[0]);
      buffer(i, j) = T(low + (high - low) * u);
    }
}

template <class T>
void fill_normal(Buffer<T>& buffer, uint64_t stream, double mean = 0, double deviation = 1) {
  const Philox rng = PhiloxKey(seed()).with(stream);
  for (int64_t i = 0; i < buffer.rows(); ++i)
    for (int64_t j = 0; j < buffer.cols(); ++j)
      buffer(i, j) =
          T(mean + deviation * normal(rng, static_cast<uint64_t>(i * buffer.cols() + j)));
}

}  // namespace orthofed::test
