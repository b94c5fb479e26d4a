// Philox4x32-10: a counter-based random generator (Salmon et al., "Parallel random numbers: as easy
// as 1, 2, 3", SC 2011). A number is a pure function of (key, counter), so the same draw comes out
// on every device, in any order, for any number of threads.
#pragma once
#include <array>
#include <cmath>
#include <cstdint>
#include <string_view>

#include "kernels/core/host_device.h"

namespace orthofed {

struct Philox {
  uint64_t key = 0;

  OF_HOST_DEVICE constexpr std::array<uint32_t, 4> operator()(uint64_t low,
                                                              uint64_t high = 0) const {
    uint32_t c0 = uint32_t(low), c1 = uint32_t(low >> 32);
    uint32_t c2 = uint32_t(high), c3 = uint32_t(high >> 32);
    uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
      c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
      c1 = uint32_t(p1);
      c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
      c3 = uint32_t(p0);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return {c0, c1, c2, c3};
  }
};

// Maps 24 of the bits to [0, 1), where every value is exact in float.
OF_HOST_DEVICE constexpr float uniform01(uint32_t bits) {
  return float(bits >> 8) * 0x1p-24f;
}

// The key of a stream is FNV-1a over its words, so that ("general", layer) and ("personal", client,
// layer) are different streams in whatever order they are drawn.
class PhiloxKey {
 public:
  explicit constexpr PhiloxKey(uint64_t seed) { mix(seed); }
  constexpr PhiloxKey& with(std::string_view word) {
    for (char c : word) step(static_cast<uint8_t>(c));
    step(0);
    return *this;
  }
  constexpr PhiloxKey& with(uint64_t number) {
    mix(number);
    return *this;
  }
  constexpr operator Philox() const { return Philox{hash_}; }

 private:
  constexpr void mix(uint64_t v) {
    for (int i = 0; i < 8; ++i) step(static_cast<uint8_t>(v >> (8 * i)));
  }
  constexpr void step(uint8_t byte) { hash_ = (hash_ ^ byte) * 0x100000001b3ull; }
  uint64_t hash_ = 0xcbf29ce484222325ull;
};

// One standard normal per counter (Box-Muller in double, so that rounding is the same everywhere).
inline double normal(const Philox& rng, uint64_t counter) {
  const auto r = rng(counter);
  const double u1 = (double(r[0]) + 1.0) * 0x1p-32, u2 = double(r[1]) * 0x1p-32;
  return std::sqrt(-2.0 * std::log(u1)) * std::cos(6.283185307179586476925 * u2);
}

}  // namespace orthofed
