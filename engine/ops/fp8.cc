#include "engine/ops/fp8.h"

#include "kernels/matmul_fp8/matmul_fp8.h"

namespace orthofed {

bool multiplies_fp8() {
  bool answer = true;  // the CPU's
  on_device<bf16>(
      queue(), "matmul_fp8", [] {},
      [&](const auto& stream) { answer = gpu::multiplies_fp8(stream); }, [] { return Cost(); });
  return answer;
}

Fp8Matrix::Fp8Matrix(const Tensor& w)
    : values_(Tensor::empty(w.shape(), DType::u8)), scales_(Tensor::empty({w.rows()}, DType::f32)) {
  const auto quantise = [&]<class T>(Tag<T>) {
    of_on(queue_of(w), quantize_rows, T)(w.data<T>(), w.pitch(), values_.data<e4m3>(),
                                         values_.pitch(), scales_.data<float>(), w.rows(),
                                         w.cols());
  };
  if (w.dtype() == DType::bf16)
    quantise(Tag<bf16>{});
  else
    quantise(Tag<float>{});
}

void Fp8Matrix::multiply(const Tensor& x, const Tensor& bias, const Tensor& y) const {
  const Fp8Matrix a(x);
  of_on(queue_of(x), matmul_fp8, bf16)(a.values_.data<e4m3>(), a.scales_.data<float>(),
                                       values_.data<e4m3>(), scales_.data<float>(), y.data<bf16>(),
                                       bias.defined() ? bias.data<float>() : nullptr,
                                       MatmulShape{.m = x.rows(),
                                                   .n = values_.rows(),
                                                   .k = values_.cols(),
                                                   .lda = a.values_.pitch(),
                                                   .ldb = values_.pitch(),
                                                   .ldc = y.pitch(),
                                                   .op_b = Op::transpose});
}

}  // namespace orthofed
