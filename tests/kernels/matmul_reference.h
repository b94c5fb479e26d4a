// One element of a matrix product in double, with the size that its error bound speaks of. The tests
// and the benchmarks of matmul and matmul_fp8 compare with it.
#pragma once
#include <cmath>
#include <cstdint>

namespace orthofed::reference {

struct ProductElement {
  double value = 0, size = 0;  // sum_p a_p b_p and sum_p |a_p b_p|
};

template <class A, class B>
ProductElement product_element(int64_t k, const A& a, const B& b) {
  ProductElement e;
  for (int64_t p = 0; p < k; ++p) {
    const double term = a(p) * b(p);
    e.value += term;
    e.size += std::abs(term);
  }
  return e;
}

}  // namespace orthofed::reference
