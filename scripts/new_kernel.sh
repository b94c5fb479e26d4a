#!/usr/bin/env bash
# Writes the five files of a new kernel from a small elementwise example, and the line that builds it.
set -euo pipefail
cd "$(dirname "$0")/.."

refuse() {
  echo "new_kernel: $*" >&2
  exit 2
}

case "${1-}" in
  -h | --help)
    cat <<'HELP'
usage: scripts/new_kernel.sh NAME
Writes the contract, CPU reference, CUDA source, test and benchmark of the kernel NAME (snake_case), and
adds of_add_kernel(NAME) to kernels/CMakeLists.txt and a row to docs/kernels.md. They compute y = x * x, forward
and backward: they build and pass as they are, on cpu and simt. Replace the formula everywhere; docs/add_a_kernel.md goes through it.
HELP
    exit 0 ;;
esac
(($# == 1)) || refuse "which name? For example: scripts/new_kernel.sh soft_plus"
name=$1
[[ $name =~ ^[a-z][a-z0-9]*(_[a-z0-9]+)*$ ]] || refuse "'$name' is no snake_case name, such as soft_plus"
taken=$(find kernels tests bench -name "$name" -o -name "${name}_test.cc" -o -name "${name}_bench.cc" | sort)
[[ -z $taken ]] || refuse "there is a ${taken%%$'\n'*} already"

camel='' # SoftPlus
IFS=_ read -ra words <<<"$name"
for word in "${words[@]}"; do camel+=${word^}; done

files=()
# write FILE: standard input, with the kernel's name in place of square and Square
write() {
  mkdir -p "${1%/*}"
  sed "s/square/$name/g; s/Square/$camel/g" >"$1"
  files+=("$1")
}

write "kernels/$name/$name.h" <<'EOF'
// y = x^2 of every element.
// Instantiated for double, float and bf16.
//
// Error: eps/2 |y| forward and eps/2 |dx| backward for the product, eps that of Accum<T>, and
// eps(T)/2 of the same for the rounding to T. Per element: forward 2 sizeof(T) bytes and 1 flop,
// backward 3 sizeof(T) bytes and 2 flops.
#pragma once
#include <cstdint>

#include "kernels/core/cost.h"
#include "kernels/core/types.h"

namespace orthofed::cpu {

// x [rows, cols] pitch ldx, y [rows, cols] pitch ldy; y may be x.
template <class T>
void square_forward(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols);

// dx = dy * 2 x; all [rows, cols]; dx may be dy.
template <class T>
void square_backward(const T* dy, int64_t lddy, const T* x, int64_t ldx, T* dx, int64_t lddx,
                     int64_t rows, int64_t cols);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost square_forward(const T* x, int64_t, T* y, int64_t, int64_t rows, int64_t cols) {
  const double n = double(rows) * cols;
  return {n, moved(x, n) + written(y, n)};
}

template <class T>
Cost square_backward(const T* dy, int64_t, const T* x, int64_t, T* dx, int64_t, int64_t rows,
                     int64_t cols) {
  const double n = double(rows) * cols;
  return {2 * n, moved(dy, n) + moved(x, n) + written(dx, n)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void square_forward(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols,
                    const Stream& stream);

template <class T, class Stream>
void square_backward(const T* dy, int64_t lddy, const T* x, int64_t ldx, T* dx, int64_t lddx,
                     int64_t rows, int64_t cols, const Stream& stream);

}  // namespace orthofed::gpu
EOF

write "kernels/$name/${name}_cpu.cc" <<'EOF'
#include "kernels/core/rows.h"
#include "kernels/square/square.h"

namespace orthofed::cpu {

template <class T>
void square_forward(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols) {
  using A = Accum<T>;
  parallel_for(rows, row_grain(cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* xi = x + i * ldx;  // [cols]
      T* yi = y + i * ldy;        // [cols]
#pragma GCC ivdep
      for (int64_t j = 0; j < cols; ++j) yi[j] = T(A(xi[j]) * A(xi[j]));
    }
  });
}

template <class T>
void square_backward(const T* dy, int64_t lddy, const T* x, int64_t ldx, T* dx, int64_t lddx,
                     int64_t rows, int64_t cols) {
  using A = Accum<T>;
  parallel_for(rows, row_grain(cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* dyi = dy + i * lddy;  // [cols]
      const T* xi = x + i * ldx;     // [cols]
      T* dxi = dx + i * lddx;        // [cols]
#pragma GCC ivdep
      for (int64_t j = 0; j < cols; ++j) dxi[j] = T(A(dyi[j]) * (A(2) * A(xi[j])));
    }
  });
}

#define OF_INSTANTIATE(T)                                                                     \
  template void square_forward<T>(const T*, int64_t, T*, int64_t, int64_t, int64_t);          \
  template void square_backward<T>(const T*, int64_t, const T*, int64_t, T*, int64_t, int64_t, \
                                   int64_t);
OF_INSTANTIATE(double)
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::cpu
EOF

write "kernels/$name/$name.cu" <<'EOF'
// Every element by itself, a warp 32 neighbouring packs of a row (core/rows.cuh). The bytes bound it.
#include "kernels/square/square.h"

#include "kernels/core/rows.cuh"

namespace orthofed::gpu {
namespace {

template <class T>
__global__ void forward_kernel(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows,
                               int64_t cols) {
  constexpr int N = kFullPack<T>;
  for_each_pack<N>(rows, cols, [&](int64_t i, int64_t j) {
    Pack<T, N> v = load_part<N>(x + i * ldx + j, cols - j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) v[e] = T(float(v[e]) * float(v[e]));
    store_part(y + i * ldy + j, v, cols - j);
  });
}

template <class T>
__global__ void backward_kernel(const T* dy, int64_t lddy, const T* x, int64_t ldx, T* dx,
                                int64_t lddx, int64_t rows, int64_t cols) {
  constexpr int N = kFullPack<T>;
  for_each_pack<N>(rows, cols, [&](int64_t i, int64_t j) {
    Pack<T, N> d = load_part<N>(dy + i * lddy + j, cols - j);      // [N]
    const Pack<T, N> v = load_part<N>(x + i * ldx + j, cols - j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) d[e] = T(float(d[e]) * (2.0f * float(v[e])));
    store_part(dx + i * lddx + j, d, cols - j);
  });
}

}  // namespace

template <class T, class Stream>
void square_forward(const T* x, int64_t ldx, T* y, int64_t ldy, int64_t rows, int64_t cols,
                    const Stream& stream) {
  launch(forward_kernel<T>, map_shape<kFullPack<T>>(rows, cols), stream, x, ldx, y, ldy, rows, cols);
}

template <class T, class Stream>
void square_backward(const T* dy, int64_t lddy, const T* x, int64_t ldx, T* dx, int64_t lddx,
                     int64_t rows, int64_t cols, const Stream& stream) {
  launch(backward_kernel<T>, map_shape<kFullPack<T>>(rows, cols), stream, dy, lddy, x, ldx, dx, lddx,
         rows, cols);
}

#define OF_INSTANTIATE(T)                                                                      \
  template void square_forward<T>(const T*, int64_t, T*, int64_t, int64_t, int64_t,            \
                                  const OF_STREAM&);                                           \
  template void square_backward<T>(const T*, int64_t, const T*, int64_t, T*, int64_t, int64_t, \
                                   int64_t, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
EOF

write "tests/kernels/${name}_test.cc" <<'EOF'
#include "kernels/square/square.h"

#include "tests/support/compare.h"
#include "tests/support/device.h"
#include "tests/support/gradcheck.h"
#include "tests/support/random.h"

namespace orthofed::test {
namespace {

struct Shape {
  int64_t rows, cols, padding;
};
// Pitches that 16-byte packs can use and others; rows that end within a pack.
constexpr Shape kShapes[] = {{0, 4, 0},  {1, 1, 0},  {2, 15, 1},  {1, 16, 0},
                             {9, 13, 3}, {7, 21, 3}, {33, 96, 8}, {3, 1032, 0}};

template <class T>
class Square : public testing::Test {
 protected:
  // square.h: a rounding to Accum<T> and one to T.
  static constexpr Budget kBudget{0.505 * (epsilon<Accum<T>> + epsilon<T>), 0};
};
using Types = testing::Types<double, float, bf16>;
TYPED_TEST_SUITE(Square, Types);

// In place it must give the same bits, which is the second run as well.
TYPED_TEST(Square, ForwardAndInPlace) {
  for_each_device<TypeParam>([](const Queue& queue) {
    for (const Shape s : kShapes) {
      SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols);
      Buffer<TypeParam> x(s.rows, s.cols, s.padding), y(s.rows, s.cols, s.padding + 1);
      fill_normal(x, 1);
      std::vector<double> want = x.to_double();
      for (double& v : want) v *= v;
      of_on(queue, square_forward, TypeParam)(x.data(), x.ld(), y.data(), y.ld(), s.rows, s.cols);
      finish(queue);
      EXPECT_TRUE(close(y, want, TestFixture::kBudget));
      of_on(queue, square_forward, TypeParam)(x.data(), x.ld(), x.data(), x.ld(), s.rows, s.cols);
      finish(queue);
      EXPECT_TRUE(identical(x, y));
      EXPECT_TRUE(x.verify());
    }
  });
}

TYPED_TEST(Square, BackwardAndInPlace) {
  for_each_device<TypeParam>([](const Queue& queue) {
    for (const Shape s : kShapes) {
      SCOPED_TRACE(testing::Message() << s.rows << " x " << s.cols);
      Buffer<TypeParam> x(s.rows, s.cols, s.padding), dy(s.rows, s.cols, 2), dx(s.rows, s.cols);
      fill_normal(x, 1);
      fill_normal(dy, 2);
      std::vector<double> want;
      for (int64_t i = 0; i < s.rows; ++i)
        for (int64_t j = 0; j < s.cols; ++j)
          want.push_back(double(dy(i, j)) * 2 * double(x(i, j)));
      of_on(queue, square_backward, TypeParam)(dy.data(), dy.ld(), x.data(), x.ld(), dx.data(), dx.ld(), s.rows, s.cols);
      finish(queue);
      EXPECT_TRUE(close(dx, want, TestFixture::kBudget));
      of_on(queue, square_backward, TypeParam)(dy.data(), dy.ld(), x.data(), x.ld(), dy.data(), dy.ld(), s.rows, s.cols);
      finish(queue);
      EXPECT_TRUE(identical(dx, dy));
      EXPECT_TRUE(dy.verify());
    }
  });
}

TEST(SquareGradient, AgreesWithFiniteDifferences) {
  Buffer<double> x(2, 9), y(2, 9), weight(2, 9), dx(2, 9);  // the loss is sum(weight * y)
  fill_normal(x, 1);
  fill_normal(weight, 2);
  cpu::square_backward(weight.data(), 9, x.data(), 9, dx.data(), 9, 2, 9);
  const auto loss = [&] {
    cpu::square_forward(x.data(), 9, y.data(), 9, 2, 9);
    return weighted_sum(y, weight);
  };
  EXPECT_TRUE(check_gradient(loss, x, dx));
}

}  // namespace
}  // namespace orthofed::test
EOF

write "bench/kernels/${name}_bench.cc" <<'EOF'
// Over a model's tokens.
#include "kernels/square/square.h"

#include "bench/support/bench.h"

namespace orthofed::bench {
namespace {

template <class T>
void forward(Bench& b, const Vit& v) {
  const int64_t rows = v.rows(), n = v.dim;
  Array<T> x(b, rows * n), y(b, rows * n, Fill::nan);
  b.shape({{"rows", rows}, {"cols", n}});
  of_time(b, square_forward, T)([&](const auto& f) { f(x.data(), n, y.data(), n, rows, n); });
  b.memcpy_peer();
  b.expect(y, rows * n, [&](int64_t i) -> Expected {
    return {x[i] * x[i], epsilon<T> * x[i] * x[i]};
  });
  b.measure();
}

template <class T>
void backward(Bench& b, const Vit& v) {
  const int64_t rows = v.rows(), n = v.dim;
  Array<T> dy(b, rows * n), x(b, rows * n), dx(b, rows * n, Fill::nan);
  b.shape({{"rows", rows}, {"cols", n}});
  of_time(b, square_backward, T)
  ([&](const auto& f) { f(dy.data(), n, x.data(), n, dx.data(), n, rows, n); });
  b.memcpy_peer();
  b.expect(dx, rows * n, [&](int64_t i) -> Expected {
    const double want = dy[i] * 2 * x[i];
    return {want, 2 * epsilon<T> * std::abs(want)};
  });
  b.measure();
}

const bool registered = on_every_vit("square/forward", forward<float>, forward<bf16>) &&
                        on_every_vit("square/backward", backward<float>, backward<bf16>);

}  // namespace
}  // namespace orthofed::bench
EOF

last=$(grep -nE '^(endfunction|of_add_kernel)\(' kernels/CMakeLists.txt | tail -n 1 | cut -d : -f 1)
sed -i "${last}a of_add_kernel($name)" kernels/CMakeLists.txt

scripts/kernels_table.sh

# The length of the name decides where lines break.
for clang_format in clang-format-14 clang-format; do
  if "$clang_format" --version 2>/dev/null | grep -q 'version 14\.'; then
    "$clang_format" -i "${files[@]}"
    break
  fi
done

printf '%s\n' "${files[@]}" "kernels/CMakeLists.txt: of_add_kernel($name)" \
  "docs/kernels.md: its row"
echo "next: cmake --preset release && cmake --build --preset release --target ${name}_test &&"
echo "      build/release/bin/${name}_test; then put your formula in (docs/add_a_kernel.md)"
