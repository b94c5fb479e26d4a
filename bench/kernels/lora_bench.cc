// The skinny products around qkv, for both adapters of rank 8 at once.
#include "kernels/lora/lora.h"

#include "bench/support/bench.h"

namespace orthofed::bench {
namespace {

// sum_p x(p) y(p) and what n such terms, and one rounding to T, may err by.
template <class T, class X, class Y>
Expected dot(int64_t n, const X& x, const Y& y, double before = 0) {
  double sum = before, size = std::abs(before);
  for (int64_t p = 0; p < n; ++p) {
    sum += x(p) * y(p);
    size += std::abs(x(p) * y(p));
  }
  return {sum, epsilon<float> * double(n + 5) * size + epsilon<T> * (std::abs(sum) + size / 1024)};
}

template <class T>
struct Problem {
  using A = Accum<T>;
  Problem(Bench& bench, const Vit& v)
      : rows(v.rows()),
        in(v.dim),
        out(3 * v.dim),
        x(bench, rows * in),
        y(bench, rows * out),
        u(bench, rows * r),
        a(bench, r * in),
        b(bench, out * r),
        scale(bench, r) {
    bench.shape({{"rows", rows}, {"in", in}, {"out", out}, {"rank", r}});
  }
  int64_t rows, in, out, r = kRank;
  Array<T> x, y, u;
  Array<A> a, b, scale;
};

template <class T>
void down(Bench& bench, const Vit& v) {
  Problem<T> o(bench, v);
  Array<T> u(bench, o.rows * o.r, Fill::nan);
  of_time(bench, lora_down, T)([&](const auto& f) {
    f(o.x.data(), o.in, o.a.data(), o.in, u.data(), o.r, o.rows, o.in, o.r);
  });
  bench.expect(u, u.size(), [&](int64_t i) {
    return dot<T>(
        o.in, [&](int64_t p) { return o.x[i / o.r * o.in + p]; },
        [&](int64_t p) { return o.a[i % o.r * o.in + p]; });
  });
  bench.measure();
}

template <class T>
void up(Bench& bench, const Vit& v) {
  Problem<T> o(bench, v);
  of_time(bench, lora_up, T)([&](const auto& f) {
    f(o.u.data(), o.r, o.b.data(), o.r, o.scale.data(), o.y.data(), o.out, o.rows, o.out, o.r);
  });
  bench.expect(o.y, o.y.size(), [&](int64_t i) {
    return dot<T>(
        o.r, [&](int64_t p) { return o.u[i / o.out * o.r + p] * o.scale[p]; },
        [&](int64_t p) { return o.b[i % o.out * o.r + p]; }, o.y[i]);
  });
  bench.measure();
}

template <class T>
void up_backward(Bench& bench, const Vit& v) {
  Problem<T> o(bench, v);
  Array<T> du(bench, o.rows * o.r, Fill::nan);
  Array<Accum<T>> db(bench, o.out * o.r, Fill::nan);
  bench.scratch(gpu::lora_up_backward_scratch<T>(o.rows, o.out, o.r));
  of_time(bench, lora_up_backward, T)([&](const auto& f) {
    f(o.y.data(), o.out, o.u.data(), o.r, o.b.data(), o.r, o.scale.data(), du.data(), o.r,
      db.data(), o.r, false, o.rows, o.out, o.r);
  });
  bench.expect(du, du.size(), [&](int64_t i) {
    return dot<T>(
        o.out, [&](int64_t p) { return o.y[i / o.r * o.out + p] * o.scale[i % o.r]; },
        [&](int64_t p) { return o.b[p * o.r + i % o.r]; });
  });
  bench.expect(db, db.size(), [&](int64_t i) {
    return dot<float>(
        o.rows, [&](int64_t p) { return o.y[p * o.out + i / o.r] * o.scale[i % o.r]; },
        [&](int64_t p) { return o.u[p * o.r + i % o.r]; });
  });
  bench.measure();
}

template <class T>
void down_backward(Bench& bench, const Vit& v) {
  Problem<T> o(bench, v);
  Array<Accum<T>> da(bench, o.r * o.in, Fill::nan);
  Array<T> dx(bench, o.rows * o.in);
  bench.scratch(gpu::lora_down_backward_scratch<T>(o.rows, o.in, o.r));
  of_time(bench, lora_down_backward, T)([&](const auto& f) {
    f(o.u.data(), o.r, o.x.data(), o.in, o.a.data(), o.in, da.data(), o.in, false, dx.data(), o.in,
      o.rows, o.in, o.r);
  });
  bench.expect(da, da.size(), [&](int64_t i) {
    return dot<float>(
        o.rows, [&](int64_t p) { return o.u[p * o.r + i / o.in]; },
        [&](int64_t p) { return o.x[p * o.in + i % o.in]; });
  });
  bench.expect(dx, dx.size(), [&](int64_t i) {
    return dot<T>(
        o.r, [&](int64_t p) { return o.u[i / o.in * o.r + p]; },
        [&](int64_t p) { return o.a[p * o.in + i % o.in]; }, dx[i]);
  });
  bench.measure();
}

template <class T>
void merge(Bench& bench, const Vit& v) {
  Problem<T> o(bench, v);
  Array<Accum<T>> w(bench, o.out * o.in);
  Array<T> merged(bench, o.out * o.in, Fill::nan);
  of_time(bench, lora_merge, T)([&](const auto& f) {
    f(w.data(), o.in, o.a.data(), o.in, o.b.data(), o.r, o.scale.data(), merged.data(), o.in, o.out,
      o.in, o.r);
  });
  bench.expect(merged, merged.size(), [&](int64_t i) {
    return dot<T>(
        o.r, [&](int64_t p) { return o.b[i / o.in * o.r + p] * o.scale[p]; },
        [&](int64_t p) { return o.a[p * o.in + i % o.in]; }, w[i]);
  });
  bench.measure();
}

const bool registered =
    on_every_vit("lora/down", down<float>, down<bf16>) &&
    on_every_vit("lora/up", up<float>, up<bf16>) &&
    on_every_vit("lora/up_backward", up_backward<float>, up_backward<bf16>) &&
    on_every_vit("lora/down_backward", down_backward<float>, down_backward<bf16>) &&
    on_every_vit("lora/merge", merge<float>, merge<bf16>);

}  // namespace
}  // namespace orthofed::bench
