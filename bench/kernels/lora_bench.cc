// The skinny products around qkv, for both adapters of rank 8 at once.
#include "kernels/lora/lora.h"

#include "bench/support/bench.h"
#include "tests/kernels/lora_reference.h"

namespace orthofed::bench {
namespace {

// What a sum and one rounding to T may err by.
template <class T>
Expected within(const reference::Sum& sum) {
  return {sum.value, epsilon<float> * double(sum.terms + 5) * sum.size +
                         epsilon<T> * (std::abs(sum.value) + sum.size / 1024)};
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
  // dy is y, and du is u.
  reference::Lora exact() const {
    const auto elements = [](const auto& m, int64_t ld) {
      return [&m, ld](int64_t i, int64_t j) { return m[i * ld + j]; };
    };
    return {.rows = rows,
            .in = in,
            .out = out,
            .rank = r,
            .x = elements(x, in),
            .a = elements(a, in),
            .b = elements(b, r),
            .u = elements(u, r),
            .dy = elements(y, out),
            .du = elements(u, r),
            .scale = [this](int64_t k) { return scale[k]; }};
  }
  int64_t rows, in, out, r = kRank;
  Array<T> x, y, u;
  Array<A> a, b, scale;
};

template <class T>
void down(Bench& bench, const Vit& v) {
  Problem<T> o(bench, v);
  Array<T> u(bench, o.rows * o.r, Fill::nan);
  OF_TIME(bench, lora_down, [&] {
    return LoraDown<T>{.x = o.x.data(),
                       .ldx = o.in,
                       .a = o.a.data(),
                       .lda = o.in,
                       .u = u.data(),
                       .ldu = o.r,
                       .rows = o.rows,
                       .in = o.in,
                       .rank = o.r};
  });
  const reference::Lora want = o.exact();
  bench.expect(u, u.size(), [&](int64_t i) { return within<T>(want.u_of(i / o.r, i % o.r)); });
  bench.measure();
}

template <class T>
void up(Bench& bench, const Vit& v) {
  Problem<T> o(bench, v);
  OF_TIME(bench, lora_up, [&] {
    return LoraUp<T>{.u = o.u.data(),
                     .ldu = o.r,
                     .b = o.b.data(),
                     .ldb = o.r,
                     .scale = o.scale.data(),
                     .y = o.y.data(),
                     .ldy = o.out,
                     .rows = o.rows,
                     .out = o.out,
                     .rank = o.r};
  });
  const reference::Lora want = o.exact();
  bench.expect(o.y, o.y.size(),
               [&](int64_t i) { return within<T>(want.y_of(i / o.out, i % o.out) + o.y[i]); });
  bench.measure();
}

template <class T>
void up_backward(Bench& bench, const Vit& v) {
  Problem<T> o(bench, v);
  Array<T> du(bench, o.rows * o.r, Fill::nan);
  Array<Accum<T>> db(bench, o.out * o.r, Fill::nan);
  bench.scratch(gpu::lora_up_backward_scratch<T>(o.rows, o.out, o.r));
  OF_TIME(bench, lora_up_backward, [&] {
    return LoraUpBackward<T>{.dy = o.y.data(),
                             .lddy = o.out,
                             .u = o.u.data(),
                             .ldu = o.r,
                             .b = o.b.data(),
                             .ldb = o.r,
                             .scale = o.scale.data(),
                             .du = du.data(),
                             .lddu = o.r,
                             .db = db.data(),
                             .lddb = o.r,
                             .rows = o.rows,
                             .out = o.out,
                             .rank = o.r};
  });
  const reference::Lora want = o.exact();
  bench.expect(du, du.size(), [&](int64_t i) { return within<T>(want.du_of(i / o.r, i % o.r)); });
  bench.expect(db, db.size(),
               [&](int64_t i) { return within<float>(want.db_of(i / o.r, i % o.r)); });
  bench.measure();
}

template <class T>
void down_backward(Bench& bench, const Vit& v) {
  Problem<T> o(bench, v);
  Array<Accum<T>> da(bench, o.r * o.in, Fill::nan);
  Array<T> dx(bench, o.rows * o.in);
  bench.scratch(gpu::lora_down_backward_scratch<T>(o.rows, o.in, o.r));
  OF_TIME(bench, lora_down_backward, [&] {
    return LoraDownBackward<T>{.du = o.u.data(),
                               .lddu = o.r,
                               .x = o.x.data(),
                               .ldx = o.in,
                               .a = o.a.data(),
                               .lda = o.in,
                               .da = da.data(),
                               .ldda = o.in,
                               .dx = dx.data(),
                               .lddx = o.in,
                               .rows = o.rows,
                               .in = o.in,
                               .rank = o.r};
  });
  const reference::Lora want = o.exact();
  bench.expect(da, da.size(),
               [&](int64_t i) { return within<float>(want.da_of(i / o.in, i % o.in)); });
  bench.expect(dx, dx.size(),
               [&](int64_t i) { return within<T>(want.dx_of(i / o.in, i % o.in) + dx[i]); });
  bench.measure();
}

template <class T>
void merge(Bench& bench, const Vit& v) {
  Problem<T> o(bench, v);
  Array<Accum<T>> w(bench, o.out * o.in);
  Array<T> merged(bench, o.out * o.in, Fill::nan);
  OF_TIME(bench, lora_merge, [&] {
    return LoraMerge<T>{.w = w.data(),
                        .ldw = o.in,
                        .a = o.a.data(),
                        .lda = o.in,
                        .b = o.b.data(),
                        .ldb = o.r,
                        .scale = o.scale.data(),
                        .merged = merged.data(),
                        .ldm = o.in,
                        .out = o.out,
                        .in = o.in,
                        .rank = o.r};
  });
  const reference::Lora want = o.exact();
  bench.expect(merged, merged.size(),
               [&](int64_t i) { return within<T>(want.delta_of(i / o.in, i % o.in) + w[i]); });
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
