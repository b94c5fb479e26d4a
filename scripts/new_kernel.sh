#!/usr/bin/env bash
# Writes the six files of a new kernel from a small elementwise example, and the line that builds it.
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
Writes the contract, CPU reference, CUDA source, reference in double, test and benchmark of the kernel NAME
(snake_case), and adds of_add_kernel(NAME) to kernels/CMakeLists.txt and a row to docs/kernels.md. They compute
y = x * x, forward and backward: they build and pass as they are, on cpu and simt. Replace the formula everywhere;
docs/add_a_kernel.md goes through it.
HELP
    exit 0 ;;
esac
(($# == 1)) || refuse "which name? For example: scripts/new_kernel.sh soft_plus"
name=$1
[[ $name =~ ^[a-z][a-z0-9]*(_[a-z0-9]+)*$ ]] || refuse "'$name' is no snake_case name, such as soft_plus"
taken=$(find kernels tests bench -name "$name" -o -name "${name}_test.cc" -o -name "${name}_reference.h" \
  -o -name "${name}_bench.cc" | sort)
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

namespace orthofed {

// y may be x.
template <class T>
struct SquareForward {
  const T* x;  // [rows, cols] pitch ldx
  int64_t ldx;
  T* y;  // [rows, cols] pitch ldy
  int64_t ldy;
  int64_t rows, cols;
};

// dx = dy * 2 x. dx may be dy.
template <class T>
struct SquareBackward {
  const T* dy;  // [rows, cols] pitch lddy
  int64_t lddy;
  const T* x;  // [rows, cols] pitch ldx
  int64_t ldx;
  T* dx;  // [rows, cols] pitch lddx
  int64_t lddx;
  int64_t rows, cols;
};

}  // namespace orthofed

namespace orthofed::cpu {

template <class T>
void square_forward(const SquareForward<T>& a);
template <class T>
void square_backward(const SquareBackward<T>& a);

}  // namespace orthofed::cpu

namespace orthofed::cost {

template <class T>
Cost square_forward(const SquareForward<T>& a) {
  const double n = double(a.rows) * a.cols;
  return {n, moved(a.x, n) + written(a.y, n)};
}
template <class T>
Cost square_backward(const SquareBackward<T>& a) {
  const double n = double(a.rows) * a.cols;
  return {2 * n, moved(a.dy, n) + moved(a.x, n) + written(a.dx, n)};
}

}  // namespace orthofed::cost

namespace orthofed::gpu {

template <class T, class Stream>
void square_forward(const SquareForward<T>& a, const Stream& stream);
template <class T, class Stream>
void square_backward(const SquareBackward<T>& a, const Stream& stream);

}  // namespace orthofed::gpu
EOF

write "kernels/$name/${name}_cpu.cc" <<'EOF'
#include "kernels/core/rows.h"
#include "kernels/square/square.h"

namespace orthofed::cpu {

template <class T>
void square_forward(const SquareForward<T>& a) {
  using A = Accum<T>;
  parallel_for(a.rows, row_grain(a.cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* x = a.x + i * a.ldx;  // [cols]
      T* y = a.y + i * a.ldy;        // [cols]
#pragma GCC ivdep
      for (int64_t j = 0; j < a.cols; ++j) y[j] = T(A(x[j]) * A(x[j]));
    }
  });
}

template <class T>
void square_backward(const SquareBackward<T>& a) {
  using A = Accum<T>;
  parallel_for(a.rows, row_grain(a.cols), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* dy = a.dy + i * a.lddy;  // [cols]
      const T* x = a.x + i * a.ldx;     // [cols]
      T* dx = a.dx + i * a.lddx;        // [cols]
#pragma GCC ivdep
      for (int64_t j = 0; j < a.cols; ++j) dx[j] = T(A(dy[j]) * (A(2) * A(x[j])));
    }
  });
}

#define OF_INSTANTIATE(T)                                 \
  template void square_forward(const SquareForward<T>&); \
  template void square_backward(const SquareBackward<T>&);
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
__global__ void forward_kernel(SquareForward<T> a) {
  constexpr int N = kFullPack<T>;
  for_each_pack<N>(a.rows, a.cols, [&](int64_t i, int64_t j) {
    Pack<T, N> v = load_part<N>(a.x + i * a.ldx + j, a.cols - j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) v[e] = T(float(v[e]) * float(v[e]));
    store_part(a.y + i * a.ldy + j, v, a.cols - j);
  });
}

template <class T>
__global__ void backward_kernel(SquareBackward<T> a) {
  constexpr int N = kFullPack<T>;
  for_each_pack<N>(a.rows, a.cols, [&](int64_t i, int64_t j) {
    Pack<T, N> d = load_part<N>(a.dy + i * a.lddy + j, a.cols - j);      // [N]
    const Pack<T, N> v = load_part<N>(a.x + i * a.ldx + j, a.cols - j);  // [N]
#pragma unroll
    for (int e = 0; e < N; ++e) d[e] = T(float(d[e]) * (2.0f * float(v[e])));
    store_part(a.dx + i * a.lddx + j, d, a.cols - j);
  });
}

}  // namespace

template <class T, class Stream>
void square_forward(const SquareForward<T>& a, const Stream& stream) {
  launch(forward_kernel<T>, map_shape<kFullPack<T>>(a.rows, a.cols), stream, a);
}

template <class T, class Stream>
void square_backward(const SquareBackward<T>& a, const Stream& stream) {
  launch(backward_kernel<T>, map_shape<kFullPack<T>>(a.rows, a.cols), stream, a);
}

#define OF_INSTANTIATE(T)                                                   \
  template void square_forward(const SquareForward<T>&, const OF_STREAM&); \
  template void square_backward(const SquareBackward<T>&, const OF_STREAM&);
OF_INSTANTIATE(float)
OF_INSTANTIATE(bf16)
#undef OF_INSTANTIATE

}  // namespace orthofed::gpu
EOF

write "tests/kernels/${name}_reference.h" <<'EOF'
// The formulas of square.h in double. Its test and its benchmark compare with them.
#pragma once

namespace orthofed::reference {

inline double square(double x) {
  return x * x;
}
inline double square_gradient(double dy, double x) {
  return dy * 2 * x;
}

}  // namespace orthofed::reference
EOF

write "tests/kernels/${name}_test.cc" <<'EOF'
#include "kernels/square/square.h"

#include "tests/kernels/square_reference.h"
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
SquareForward<T> forward_of(Buffer<T>& x, Buffer<T>& y) {
  return {.x = x.data(),
          .ldx = x.ld(),
          .y = y.data(),
          .ldy = y.ld(),
          .rows = x.rows(),
          .cols = x.cols()};
}
template <class T>
SquareBackward<T> backward_of(Buffer<T>& dy, Buffer<T>& x, Buffer<T>& dx) {
  return {.dy = dy.data(),
          .lddy = dy.ld(),
          .x = x.data(),
          .ldx = x.ld(),
          .dx = dx.data(),
          .lddx = dx.ld(),
          .rows = x.rows(),
          .cols = x.cols()};
}

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
      for (double& v : want) v = reference::square(v);
      OF_RUN(queue, square_forward, forward_of(x, y));
      finish(queue);
      EXPECT_TRUE(close(y, want, TestFixture::kBudget));
      OF_RUN(queue, square_forward, forward_of(x, x));
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
          want.push_back(reference::square_gradient(double(dy(i, j)), double(x(i, j))));
      OF_RUN(queue, square_backward, backward_of(dy, x, dx));
      finish(queue);
      EXPECT_TRUE(close(dx, want, TestFixture::kBudget));
      OF_RUN(queue, square_backward, backward_of(dy, x, dy));
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
  cpu::square_backward(backward_of(weight, x, dx));
  const auto loss = [&] {
    cpu::square_forward(forward_of(x, y));
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
#include "tests/kernels/square_reference.h"

namespace orthofed::bench {
namespace {

template <class T>
void forward(Bench& b, const Vit& v) {
  const int64_t rows = v.rows(), n = v.dim;
  Array<T> x(b, rows * n), y(b, rows * n, Fill::nan);
  b.shape({{"rows", rows}, {"cols", n}});
  OF_TIME(b, square_forward, [&] {
    return SquareForward<T>{
        .x = x.data(), .ldx = n, .y = y.data(), .ldy = n, .rows = rows, .cols = n};
  });
  b.memcpy_peer();
  b.expect(y, rows * n, [&](int64_t i) -> Expected {
    const double want = reference::square(x[i]);
    return {want, epsilon<T> * want};
  });
  b.measure();
}

template <class T>
void backward(Bench& b, const Vit& v) {
  const int64_t rows = v.rows(), n = v.dim;
  Array<T> dy(b, rows * n), x(b, rows * n), dx(b, rows * n, Fill::nan);
  b.shape({{"rows", rows}, {"cols", n}});
  OF_TIME(b, square_backward, [&] {
    return SquareBackward<T>{.dy = dy.data(),
                             .lddy = n,
                             .x = x.data(),
                             .ldx = n,
                             .dx = dx.data(),
                             .lddx = n,
                             .rows = rows,
                             .cols = n};
  });
  b.memcpy_peer();
  b.expect(dx, rows * n, [&](int64_t i) -> Expected {
    const double want = reference::square_gradient(dy[i], x[i]);
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
