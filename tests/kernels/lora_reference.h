// The products of lora.h in double, element by element. Its test and its benchmark compare with them.
#pragma once
#include <cmath>
#include <cstdint>
#include <functional>

namespace orthofed::reference {

struct Sum {
  double value = 0;
  double size = 0;  // sum |terms|, which an error is measured by
  int64_t terms = 0;

  // What the product was added to.
  Sum operator+(double start) const { return {value + start, size + std::abs(start), terms}; }
};

template <class Term>
Sum sum_of(int64_t terms, const Term& term) {
  Sum sum{.terms = terms};
  for (int64_t p = 0; p < terms; ++p) {
    const double t = term(p);
    sum.value += t;
    sum.size += std::abs(t);
  }
  return sum;
}

// Inputs by row and column, as lora.h names them. What a product does not read may be missing.
struct Lora {
  using Elements = std::function<double(int64_t, int64_t)>;
  int64_t rows = 0, in = 0, out = 0, rank = 0;
  Elements x, a, b, u, dy, du;
  std::function<double(int64_t)> scale;

  Sum u_of(int64_t i, int64_t r) const {
    return sum_of(in, [&](int64_t p) { return x(i, p) * a(r, p); });
  }
  Sum y_of(int64_t i, int64_t o) const {  // without the y that was there
    return sum_of(rank, [&](int64_t r) { return scale(r) * u(i, r) * b(o, r); });
  }
  Sum du_of(int64_t i, int64_t r) const {
    return sum_of(out, [&](int64_t o) { return scale(r) * dy(i, o) * b(o, r); });
  }
  Sum db_of(int64_t o, int64_t r) const {
    return sum_of(rows, [&](int64_t i) { return scale(r) * dy(i, o) * u(i, r); });
  }
  Sum da_of(int64_t r, int64_t c) const {
    return sum_of(rows, [&](int64_t i) { return du(i, r) * x(i, c); });
  }
  Sum dx_of(int64_t i, int64_t c) const {  // without the dx that was there
    return sum_of(rank, [&](int64_t r) { return du(i, r) * a(r, c); });
  }
  Sum delta_of(int64_t o, int64_t c) const {  // of W
    return sum_of(rank, [&](int64_t r) { return scale(r) * b(o, r) * a(r, c); });
  }
};

}  // namespace orthofed::reference
