#include "engine/tensor/ceiling.h"

#include <chrono>

#include "engine/tensor/tensor.h"
#include "kernels/core/cuda_device.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/matmul/matmul.h"

namespace orthofed {
namespace {

// The shortest of the calls that fit into half a second, at least two; the first one warms up.
template <class F>
double shortest_seconds([[maybe_unused]] const Queue& queue, const F& work) {
  using Clock = std::chrono::steady_clock;
  const auto once = [&] {
    const auto begin = Clock::now();
#ifdef OF_HAVE_CUDA
    if (queue.device == Device::cuda) return cuda::seconds_of(queue.cuda, work);
#endif
    work();
    return std::chrono::duration<double>(Clock::now() - begin).count();
  };
  (void)queue;
  const auto begin = Clock::now();
  once();
  double best = once();
  while (Clock::now() - begin < std::chrono::milliseconds(500)) best = std::min(best, once());
  return best;
}

}  // namespace

Ceilings measure_ceilings(DType compute) {
  const Queue& q = queue();
  const bool emulated = q.device == Device::simt, gpu = q.device == Device::cuda;
  Ceilings ceilings;

  // Far more than any cache holds.
  const int64_t rows = emulated ? 64 : gpu ? 65536 : 16384, cols = 1024;
  const Tensor from = Tensor::full({rows, cols}, DType::f32, 1);
  const Tensor to = Tensor::full({rows, cols}, DType::f32, 2);
  const double copied = 2.0 * double(rows) * cols * sizeof(float);
  ceilings.bytes = copied / shortest_seconds(q, [&] { to.copy_from(from); });

  const int64_t n = emulated ? 64 : gpu ? 8192 : 1024;
  std::vector<float> values(size_t(n * n));
  uint32_t state = 1;  // any bits will do, but zeros multiply faster
  for (float& v : values) v = float(int32_t(state = state * 1664525u + 1013904223u)) * 0x1p-31f;
  const Tensor a = Tensor::of(values, {n, n}).to(compute);
  const Tensor c = Tensor::empty({n, n}, compute);
  dispatch(compute, [&]<class T>(Tag<T>) {
    const auto product = [&]() -> double {
      if constexpr (!std::is_same_v<T, double>) {
        if (q.device == Device::cpu) {
          const cpu::PackedMatrix<T> b(a.data<T>(), a.pitch(), Op::transpose, n, n);
          return shortest_seconds(q, [&] {
            b.multiply(a.data<T>(), a.pitch(), c.data<T>(), c.pitch(), nullptr, false, n);
          });
        }
      }
      return shortest_seconds(q, [&] {
        OF_RUN(q, matmul,
               Matmul<T, T>{.a = a.data<T>(),
                            .b = a.data<T>(),
                            .c = c.data<T>(),
                            .shape = {.m = n,
                                      .n = n,
                                      .k = n,
                                      .lda = a.pitch(),
                                      .ldb = a.pitch(),
                                      .ldc = c.pitch(),
                                      .op_b = Op::transpose}});
      });
    };
    ceilings.flops = 2.0 * double(n) * double(n) * double(n) / product();
  });
  return ceilings;
}

}  // namespace orthofed
