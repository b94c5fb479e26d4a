// What is done to a tensor of activations by itself: add, scale, fill, cast, the search for NaN.
#include "kernels/elementwise/elementwise.h"

#include "bench/support/bench.h"

namespace orthofed::bench {
namespace {

template <class T>
void add(Bench& b, const Vit& v) {
  const int64_t rows = v.rows(), n = v.dim;
  Array<T> x(b, rows * n), y(b, rows * n);
  b.shape({{"rows", rows}, {"cols", n}});
  OF_TIME(b, add, [&] {
    return Add<T>{.x = x.data(), .ldx = n, .y = y.data(), .ldy = n, .rows = rows, .cols = n};
  });
  b.memcpy_peer();
  b.expect(y, y.size(), [&](int64_t i) -> Expected {
    return {x[i] + y[i], epsilon<T> * std::abs(x[i] + y[i])};
  });
  b.measure();
}

template <class T>
void scale(Bench& b, const Vit& v) {
  const int64_t rows = v.rows(), n = v.dim;
  Array<Accum<T>> factor(b, 1);
  Array<T> y(b, rows * n);
  b.shape({{"rows", rows}, {"cols", n}});
  OF_TIME(b, scale, [&] {
    return Scale<T>{.factor = factor.data(), .y = y.data(), .ldy = n, .rows = rows, .cols = n};
  });
  b.memcpy_peer();
  b.expect(y, y.size(), [&](int64_t i) -> Expected {
    return {factor[0] * y[i], epsilon<T> * std::abs(factor[0] * y[i])};
  });
  b.measure();
}

template <class T>
void fill(Bench& b, const Vit& v) {
  const int64_t rows = v.rows(), n = v.dim;
  Array<T> y(b, rows * n, Fill::nan);
  b.shape({{"rows", rows}, {"cols", n}});
  OF_TIME(b, fill, [&] {
    return orthofed::Fill{.value = 0.1,
                          .y = static_cast<void*>(y.data()),
                          .type = DTypeOf<T>::value,
                          .ldy = n,
                          .rows = rows,
                          .cols = n};
  });
  b.memcpy_peer();
  b.expect(y, y.size(), [](int64_t) -> Expected { return {double(T(0.1f)), 0}; });
  b.measure();
}

// From T to the other type that activations have.
template <class T, class To>
void cast(Bench& b, const Vit& v) {
  const int64_t rows = v.rows(), n = v.dim;
  Array<T> x(b, rows * n);
  Array<To> y(b, rows * n, Fill::nan);
  b.shape({{"rows", rows}, {"cols", n}});
  OF_TIME(b, cast, [&] {
    return Cast{.x = static_cast<const void*>(x.data()),
                .x_type = DTypeOf<T>::value,
                .ldx = n,
                .y = static_cast<void*>(y.data()),
                .y_type = DTypeOf<To>::value,
                .ldy = n,
                .rows = rows,
                .cols = n};
  });
  b.memcpy_peer();
  b.expect(y, y.size(), [&](int64_t i) -> Expected { return {double(To(float(x[i]))), 0}; });
  b.measure();
}

template <class T>
void all_finite(Bench& b, const Vit& v) {
  const int64_t rows = v.rows(), n = v.dim;
  Array<T> x(b, rows * n);
  Array<int32_t> finite(b, 1, Fill::nan);
  b.shape({{"rows", rows}, {"cols", n}});
  OF_TIME(b, all_finite, [&] {
    return AllFinite{.x = static_cast<const void*>(x.data()),
                     .type = DTypeOf<T>::value,
                     .ldx = n,
                     .finite = finite.data(),
                     .rows = rows,
                     .cols = n};
  });
  b.expect(finite, 1, [](int64_t) -> Expected { return {1, 0}; });
  b.measure();
}

const bool registered = on_every_vit("elementwise/add", add<float>, add<bf16>) &&
                        on_every_vit("elementwise/scale", scale<float>, scale<bf16>) &&
                        on_every_vit("elementwise/fill", fill<float>, fill<bf16>) &&
                        on_every_vit("elementwise/cast", cast<float, bf16>, cast<bf16, float>) &&
                        on_every_vit("elementwise/all_finite", all_finite<float>, all_finite<bf16>);

}  // namespace
}  // namespace orthofed::bench
