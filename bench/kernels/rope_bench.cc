// Rotary positions of q and k in a packed qkv, in place, behind one class token; backward, the
// gradients of q and k in a packed dqkv are turned back.
#include "kernels/rope/rope.h"

#include "bench/support/bench.h"

namespace orthofed::bench {
namespace {

// time(arguments) times the direction that turns by `sign` times the angle.
template <class T, class Time>
void turn(Bench& b, const Vit& v, double sign, const Time& time) {
  using A = Accum<T>;
  const int64_t d = v.head_dim(), half = d / 2, ld = 3 * v.dim, prefix = 1;
  const RopeShape s{v.batch, v.tokens, prefix, 2 * v.heads, d, ld};
  Array<T> x(b, v.rows() * ld);
  std::vector<A> cosines, sines;  // [tokens - prefix, half]
  for (int64_t i = 0; i < (v.tokens - prefix) * half; ++i) {
    cosines.push_back(A(std::cos(double(i))));
    sines.push_back(A(std::sin(double(i))));
  }
  Array<A> cos(b, cosines), sin(b, sines);
  b.shape({{"batch", v.batch}, {"tokens", v.tokens}, {"heads", s.heads}, {"head_dim", d}});
  time([&] { return Rope<T>{.x = x.data(), .cos = cos.data(), .sin = sin.data(), .shape = s}; });
  b.memcpy_peer();
  b.expect(x, x.size(), [&](int64_t i) -> Expected {
    const int64_t token = i / ld % v.tokens, column = i % ld, j = column % d;
    if (token < prefix || column >= s.heads * d) return {x[i], 0};
    const int64_t angle = (token - prefix) * half + j % half;
    const double want = j < half ? x[i] * cos[angle] - sign * x[i + half] * sin[angle]
                                 : x[i] * cos[angle] + sign * x[i - half] * sin[angle];
    return {want, 3 * epsilon<A> + epsilon<T> * std::abs(want)};
  });
  b.measure();
}

template <class T>
void forward(Bench& b, const Vit& v) {
  turn<T>(b, v, 1, [&](const auto& arguments) { OF_TIME(b, rope_forward, arguments); });
}
template <class T>
void backward(Bench& b, const Vit& v) {
  turn<T>(b, v, -1, [&](const auto& arguments) { OF_TIME(b, rope_backward, arguments); });
}

const bool registered = on_every_vit("rope/forward", forward<float>, forward<bf16>) &&
                        on_every_vit("rope/backward", backward<float>, backward<bf16>);

}  // namespace
}  // namespace orthofed::bench
