#include "engine/ops/fp8.h"

#include "kernels/matmul_fp8/matmul_fp8.h"

namespace orthofed {

bool multiplies_fp8() {
  bool answer = true;  // the CPU's
  if (queue().device != Device::cpu)
    on_stream(queue(), [&](const auto& stream) { answer = gpu::multiplies_fp8(stream); });
  return answer;
}

Fp8Matrix::Fp8Matrix(const Tensor& w)
    : values_(Tensor::empty(w.shape(), DType::u8)), scales_(Tensor::empty({w.rows()}, DType::f32)) {
  const auto quantise = [&]<class T>(Tag<T>) {
    OF_RUN(queue_of(w), quantize_rows,
           QuantizeRows<T>{.x = w.data<T>(),
                           .ldx = w.pitch(),
                           .q = values_.data<e4m3>(),
                           .ldq = values_.pitch(),
                           .scales = scales_.data<float>(),
                           .rows = w.rows(),
                           .cols = w.cols()});
  };
  if (w.dtype() == DType::bf16)
    quantise(Tag<bf16>{});
  else
    quantise(Tag<float>{});
}

void Fp8Matrix::multiply(const Tensor& x, const Tensor& bias, const Tensor& y) const {
  const Fp8Matrix a(x);
  OF_RUN(queue_of(x), matmul_fp8,
         MatmulFp8<bf16>{.a = a.values_.data<e4m3>(),
                         .scales_a = a.scales_.data<float>(),
                         .b = values_.data<e4m3>(),
                         .scales_b = scales_.data<float>(),
                         .c = y.data<bf16>(),
                         .bias = bias.defined() ? bias.data<float>() : nullptr,
                         .shape = {.m = x.rows(),
                                   .n = values_.rows(),
                                   .k = values_.cols(),
                                   .lda = a.values_.pitch(),
                                   .ldb = values_.pitch(),
                                   .ldc = y.pitch(),
                                   .op_b = Op::transpose}});
}

}  // namespace orthofed
