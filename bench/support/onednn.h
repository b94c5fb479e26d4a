// oneDNN's primitives are peers of our kernels on the CPU, for dense rows of float. Each function
// returns a run over the arrays' selected copies; or none on a GPU, in a build without oneDNN, and
// where oneDNN has no such primitive for this processor.
#pragma once
#include "bench/support/bench.h"

namespace orthofed::bench::onednn {

Bench::Run softmax(Bench& b, Array<float>& x, Array<float>& y, int64_t rows, int64_t cols);
Bench::Run layer_norm(Bench& b, Array<float>& x, Array<float>& gamma, Array<float>& beta,
                      Array<float>& y, int64_t rows, int64_t cols, double eps);
// The erf form.
Bench::Run gelu(Bench& b, Array<float>& x, Array<float>& y, int64_t n);
Bench::Run gelu_backward(Bench& b, Array<float>& dy, Array<float>& x, Array<float>& dx, int64_t n);
Bench::Run sum(Bench& b, Array<float>& x, Array<float>& out, int64_t n);

}  // namespace orthofed::bench::onednn
