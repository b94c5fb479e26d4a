// The frozen products of a block in FP8 beside the same product in bf16, and what it takes to
// quantise the activations. (On a CPU FP8 is computed in bf16, from operands that are converted
// first: the difference is the price of that.)
#include "kernels/matmul_fp8/matmul_fp8.h"

#include "bench/support/bench.h"
#include "tests/kernels/matmul_reference.h"

namespace orthofed::bench {
namespace {

int64_t padded(int64_t k) {
  return (k + 15) / 16 * 16;
}

bool multiplies([[maybe_unused]] const Bench& b) {
#ifdef OF_HAVE_CUDA
  if (b.on_gpu()) return gpu::multiplies_fp8(b.queue().cuda);
#endif
  return true;
}

// Random numbers in [-1, 1), [rows, k], and zeros behind each row.
std::vector<e4m3> matrix(int64_t rows, int64_t k, uint64_t seed) {
  std::vector<e4m3> values(size_t(rows * padded(k)), e4m3(0.0f));
  const Philox rng = PhiloxKey(seed).with("fp8");
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t p = 0; p < k; ++p)
      values[size_t(i * padded(k) + p)] =
          e4m3(float(2 * uniform01(rng(uint64_t(i * k + p))[0]) - 1));
  return values;
}

void product(Bench& b, const Vit& v, Linear l) {
  if (!multiplies(b)) return;
  const int64_t m = v.rows(), n = l.out, k = l.in, ld = padded(k);
  const MatmulShape s{m, n, k, ld, ld, n, Op::none, Op::transpose};
  Array<e4m3> x(b, matrix(m, k, 1)), w(b, matrix(n, k, 2));
  // So that the peer computes the same.
  Array<float> scales_x(b, std::vector<float>(size_t(m), 1.0f));
  Array<float> scales_w(b, std::vector<float>(size_t(n), 1.0f)), bias(b, n);
  const auto widened = [](const Array<e4m3>& from) {
    return std::vector<bf16>(from.host().begin(), from.host().end());
  };
  Array<bf16> x_bf16(b, widened(x)), w_bf16(b, widened(w));
  Array<bf16> y(b, m * n, Fill::nan);
  const auto arguments = [&] {
    return MatmulFp8<bf16>{.a = x.data(),
                           .scales_a = scales_x.data(),
                           .b = w.data(),
                           .scales_b = scales_w.data(),
                           .c = y.data(),
                           .bias = bias.data(),
                           .shape = s};
  };
  b.shape({{"m", m}, {"n", n}, {"k", k}});
  OF_TIME(b, matmul_fp8, arguments);
  OF_TIME_VERSIONS(b, arguments, matmul_fp8_versions, bf16);
  b.provider("bf16", [&] {
    OF_RUN(b.queue(), matmul,
           Matmul<bf16, bf16>{.a = x_bf16.data(),
                              .b = w_bf16.data(),
                              .c = y.data(),
                              .bias = bias.data(),
                              .shape = s});
  });
  b.expect(y, m * n, [&](int64_t at) -> Expected {
    const int64_t i = at / n, j = at % n;
    const auto sum = reference::product_element(
        k, [&](int64_t p) { return x[i * ld + p]; }, [&](int64_t p) { return w[j * ld + p]; });
    const double want = sum.value + bias[j];
    const double dropped = b.on_gpu() ? 132 * 0x1p-13 : 0;
    return {want, (epsilon<float> * double(k + 4) + dropped) * sum.size +
                      epsilon<float> * std::abs(bias[j]) + epsilon<bf16> * std::abs(want)};
  });
  b.measure();
}

void qkv(Bench& b, const Vit& v) {
  product(b, v, {v.dim, 3 * v.dim});
}
void proj(Bench& b, const Vit& v) {
  product(b, v, {v.dim, v.dim});
}
void fc1(Bench& b, const Vit& v) {
  product(b, v, {v.dim, v.mlp()});
}
void fc2(Bench& b, const Vit& v) {
  product(b, v, {v.mlp(), v.dim});
}

void quantise(Bench& b, const Vit& v) {
  const int64_t rows = v.rows(), n = v.dim, ld = padded(n);
  Array<bf16> x(b, rows * n);
  Array<e4m3> q(b, rows * ld, Fill::nan);
  Array<float> scales(b, rows, Fill::nan);
  b.shape({{"rows", rows}, {"cols", n}});
  OF_TIME(b, quantize_rows, [&] {
    return QuantizeRows<bf16>{.x = x.data(),
                              .ldx = n,
                              .q = q.data(),
                              .ldq = ld,
                              .scales = scales.data(),
                              .rows = rows,
                              .cols = n};
  });
  b.memcpy_peer();
  const auto scale_of = [&](int64_t i) {
    double largest = 0;
    for (int64_t p = 0; p < n; ++p) largest = std::max(largest, std::abs(x[i * n + p]));
    return largest / 448;
  };
  b.expect(scales, rows, [&](int64_t i) -> Expected {
    return {scale_of(i), epsilon<float> * scale_of(i)};
  });
  b.expect_at(
      q, rows * n, [=](int64_t at) { return at / n * ld + at % n; },
      [&](int64_t at) -> Expected {
        const double want = x[at] / scale_of(at / n);
        return {want, 1.001 * std::max(0x1p-4 * std::abs(want), 0x1p-10)};
      });
  b.measure();
}

const bool registered = on_every_vit("matmul_fp8/quantize", nullptr, quantise) &&
                        on_every_vit("matmul_fp8/qkv", nullptr, qkv) &&
                        on_every_vit("matmul_fp8/proj", nullptr, proj) &&
                        on_every_vit("matmul_fp8/fc1", nullptr, fc1) &&
                        on_every_vit("matmul_fp8/fc2", nullptr, fc2);

}  // namespace
}  // namespace orthofed::bench
