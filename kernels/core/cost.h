// The least that one call of a kernel costs: floating-point operations, and bytes that must cross
// the memory bus if each input is read once and each output is written once. Beside cpu::f and
// gpu::f every kernel's contract has a third twin that takes the same struct:
//
//   cost::f(arguments) -> Cost
//
// It looks at sizes and at which optional arguments are null, never at the elements themselves.
// It does read the items of a list (optimizer, grad_norm, orthogonality), in host memory.
// Benches and `orthofed train --profile` divide it by the time a call took.
#pragma once
#include <algorithm>

namespace orthofed {

struct Cost {
  double flops = 0, bytes = 0;

  Cost& operator+=(const Cost& c) { return flops += c.flops, bytes += c.bytes, *this; }
  friend Cost operator+(Cost a, const Cost& b) { return a += b; }
};

namespace cost {

// The bytes of `count` elements at p; an optional argument that is not given costs nothing.
template <class T>
double moved(const T* p, double count) {
  return p == nullptr ? 0 : count * double(sizeof(T));
}
// The same for an output, which is read as well if it is accumulated into.
template <class T>
double written(const T* p, double count, bool accumulate = false) {
  return moved(p, accumulate ? 2 * count : count);
}

}  // namespace cost
}  // namespace orthofed
