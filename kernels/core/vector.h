// Vectors as wide as the registers of the instruction set that a loop is cloned for.
//
// Most kernels leave vectorisation to the compiler (parallel.h). The few whose speed is the number
// of registers they keep busy (matrix products, attention) write their inner tile with the
// compiler's own vector type, which has the arithmetic operators of its elements, broadcasts a
// scalar operand and becomes one register in a clone that has registers of that size.
#pragma once
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/core/parallel.h"
#include "kernels/core/types.h"

namespace orthofed::cpu {

// `lanes` elements of T, readable and writable at any element's address. Inside a clone pass them
// by reference, or to always_inline functions: how they are passed by value depends on the clone.
template <class T, int lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(lanes * sizeof(T)), aligned(alignof(T)), may_alias));
};
template <class T, int lanes>
using Vector = typename VectorOf<T, lanes>::type;

template <class V, class T>
inline __attribute__((always_inline)) V& as_vector(T* p) {
  return *reinterpret_cast<V*>(p);
}
template <class V, class T>
inline __attribute__((always_inline)) const V& as_vector(const T* p) {
  return *reinterpret_cast<const V*>(p);
}

// Runs body(lanes, begin, end) as parallel_for does; lanes, a compile-time constant, is the number
// of elements of T in one register of the clone.
template <class T, class F>
void parallel_for_vector(int64_t n, int64_t grain, const F& body) {
  const int64_t chunks = n <= 0 ? 0 : (n + grain - 1) / grain;
#pragma omp parallel for schedule(dynamic) if (chunks > 1)
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t begin = c * grain, end = std::min(n, begin + grain);
    const auto with = [&]<int bytes>() {
      body(std::integral_constant<int, bytes / int{sizeof(T)}>{}, begin, end);
    };
#if defined(__x86_64__)
    switch (isa()) {
      case Isa::v4:
        run_v4([&] { with.template operator()<64>(); });
        break;
      case Isa::v3:
        run_v3([&] { with.template operator()<32>(); });
        break;
      default:
        run_v2([&] { with.template operator()<16>(); });
    }
#else
    with.template operator()<16>();
#endif
  }
}

}  // namespace orthofed::cpu
