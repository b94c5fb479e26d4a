#include "engine/ops/linear.h"

#include <fmt/core.h>

#include "engine/ops/gelu.h"
#include "engine/ops/residual.h"
#include "engine/tensor/allocator.h"
#include "engine/tensor/profile.h"
#include "engine/tensor/watch.h"
#include "kernels/residual/residual.h"

namespace orthofed {
namespace {

// Of y = x W^T, and of dx = dy W.
MatmulShape shape_of_forward(const Tensor& x, const Tensor& w, const Tensor& y) {
  return {.m = x.rows(),
          .n = w.rows(),
          .k = w.cols(),
          .lda = x.pitch(),
          .ldb = w.pitch(),
          .ldc = y.pitch(),
          .op_b = Op::transpose};
}
MatmulShape shape_of_backward(const Tensor& dy, const Tensor& w, const Tensor& dx) {
  return {.m = dy.rows(),
          .n = w.cols(),
          .k = w.rows(),
          .lda = dy.pitch(),
          .ldb = w.pitch(),
          .ldc = dx.pitch()};
}

// y = x W + bias, shown to whoever watches like any kernel call. Only a CPU packs.
template <class T>
void packed_matmul(const cpu::PackedMatrix<T>& w, const Tensor& x, const Tensor& y,
                   const Accum<T>* bias) {
  run_kernel(
      queue_of(x), "packed_matmul",
      [&w](const Matmul<T, T>& p) {
        w.multiply(p.a, p.shape.lda, p.c, p.shape.ldc, p.bias, p.accumulate, p.shape.m);
      },
      [](const auto&...) { OF_CHECK(false, "a packed product on a device"); },
      [](const auto& p) { return cost::packed_matmul(p); },
      Matmul<T, T>{
          .a = x.data<T>(),
          .b = nullptr,
          .c = y.data<T>(),
          .bias = bias,
          .shape = {
              .m = x.rows(), .n = y.cols(), .k = x.cols(), .lda = x.pitch(), .ldc = y.pitch()}});
}

// On w's device; made on the host, which is once for each frozen layer.
Tensor transposed(const Tensor& w) {
  const Tensor from = w.host_copy();
  const OnDevice host(Device::cpu);
  const Tensor to = Tensor::empty({w.cols(), w.rows()}, DType::f32);
  for (int64_t i = 0; i < w.rows(); ++i)
    for (int64_t j = 0; j < w.cols(); ++j) to.row<float>(j)[i] = from.row<float>(i)[j];
  return to.on(w.device());
}

}  // namespace

Linear::Linear(Var weight_, Var bias_, DType compute)
    : weight(std::move(weight_)), bias(std::move(bias_)), compute_(compute) {
  OF_CHECK(weight.value().dtype() == accum(compute), "weights are kept in the accumulation type");
  // Now, so that copies of a frozen layer share it; a CPU multiplies the packed W instead.
  if (!weight.requires_grad() && weight.value().device() != Device::cpu) computed_weight();
}

template <class T>
Linear::Packed<T>* Linear::packed() const {
  // Double is for gradient checks only, where nothing is worth packing; a GPU reads W as it is.
  if (merged() || weight.requires_grad() || weight.value().device() != Device::cpu) return nullptr;
  if constexpr (std::is_same_v<T, float>) return &packed_f32_;
  if constexpr (std::is_same_v<T, bf16>) return &packed_bf16_;
  return nullptr;
}

const Tensor& Linear::computed_weight() const {
  if (merged()) return merged_;
  if (weight.value().dtype() == compute_) return weight.value();
  if (weight.requires_grad() || !frozen_.defined()) frozen_ = weight.value().to(compute_);
  return frozen_;
}

void Linear::product(const Tensor& x, const AdapterTail& tail, const Tensor& y) const {
  if (quantized()) return fp8_.forward.multiply(x, bias.defined() ? bias.value() : Tensor(), y);
  dispatch(compute_, [&]<class T>(Tag<T>) {
    const auto* b = data_or_null<Accum<T>>(bias);
    if (auto* p = packed<T>()) {
      if constexpr (!std::is_same_v<T, double>) {
        if (p->forward.empty()) {
          const Tensor w = weight.value().to(compute_);
          p->forward = {w.data<T>(), w.pitch(), Op::transpose, in(), out()};
        }
        packed_matmul<T>(p->forward, x, y, b);
      }
      return;
    }
    const Tensor& w = computed_weight();
    if (tail.u.defined())
      OF_RUN(queue_of(x), matmul_extended,
             MatmulExtended<T>{.a = x.data<T>(),
                               .b = w.data<T>(),
                               .tail = tail.of<T>(),
                               .c = y.data<T>(),
                               .bias = b,
                               .shape = shape_of_forward(x, w, y)});
    else
      OF_RUN(queue_of(x), matmul,
             Matmul<T, T>{.a = x.data<T>(),
                          .b = w.data<T>(),
                          .c = y.data<T>(),
                          .bias = b,
                          .shape = shape_of_forward(x, w, y)});
  });
}

void Linear::product_transposed(const Tensor& dy, const AdapterTail& tail, const Tensor& dx) const {
  if (quantized()) return fp8_.backward.multiply(dy, Tensor(), dx);
  dispatch(compute_, [&]<class T>(Tag<T>) {
    if (auto* p = packed<T>()) {
      if constexpr (!std::is_same_v<T, double>) {
        if (p->backward.empty()) {
          const Tensor w = weight.value().to(compute_);
          p->backward = {w.data<T>(), w.pitch(), Op::none, out(), in()};
        }
        packed_matmul<T>(p->backward, dy, dx, nullptr);
      }
      return;
    }
    const Tensor& w = computed_weight();
    if (tail.u.defined())
      OF_RUN(queue_of(dy), matmul_extended,
             MatmulExtended<T>{.a = dy.data<T>(),
                               .b = w.data<T>(),
                               .tail = tail.of<T>(),
                               .c = dx.data<T>(),
                               .shape = shape_of_backward(dy, w, dx)});
    else
      OF_RUN(queue_of(dy), matmul,
             Matmul<T, T>{.a = dy.data<T>(),
                          .b = w.data<T>(),
                          .c = dx.data<T>(),
                          .shape = shape_of_backward(dy, w, dx)});
  });
}

bool Linear::extended() const {
  return strategy_ == AdapterStrategy::extended && compute_ == DType::bf16 &&
         weight.value().device() != Device::cpu;
}

bool Linear::fuses() const {
  const bool packs = dispatch(compute_, [&]<class T>(Tag<T>) { return packed<T>() != nullptr; });
  return !packs && !quantized() && (!apart() || adapters.active_rank() == 0);
}

AdapterTail Linear::tail_forward(const Tensor& u) const {
  return extended() && u.defined() ? adapters.up_tail(u) : AdapterTail{};
}

AdapterTail Linear::tail_backward(const Tensor& du) const {
  return extended() && du.defined() ? adapters.down_tail(du) : AdapterTail{};
}

Tensor Linear::forward(const Tensor& x, Saved* saved) const {
  OF_CHECK(x.cols() == in(), fmt::format("{} inputs expected, {} given", in(), x.cols()));
  set_watched_layer(weight.name());
  const Span layer(weight.name(), Profile::Kind::part);
  const Saved s = project(x, saved != nullptr);
  const Tensor y = Tensor::empty({x.rows(), out()}, compute_);
  product(x, tail_forward(s.u), y);
  if (apart() && s.u.defined()) adapters.up(s.u, y);
  if (saved != nullptr) *saved = s;
  return y;
}

Tensor Linear::forward_gelu(const Tensor& x, GeluKind kind, Saved* saved, Tensor* f) const {
  if (!fuses()) {
    *f = forward(x, saved);
    return gelu_forward(*f, kind);
  }
  set_watched_layer(weight.name());
  const Span layer(weight.name(), Profile::Kind::part);
  const Saved s = project(x, saved != nullptr);
  const AdapterTail tail = tail_forward(s.u);
  *f = Tensor::empty({x.rows(), out()}, compute_);
  const Tensor y = Tensor::empty({x.rows(), out()}, compute_);
  dispatch(compute_, [&]<class T>(Tag<T>) {
    const Tensor& w = computed_weight();
    OF_RUN(queue_of(x), matmul_gelu,
           MatmulGelu<T>{.a = x.data<T>(),
                         .b = w.data<T>(),
                         .tail = tail.of<T>(),
                         .bias = data_or_null<Accum<T>>(bias),
                         .h = f->data<T>(),
                         .ldh = f->pitch(),
                         .y = y.data<T>(),
                         .kind = kind,
                         .shape = shape_of_forward(x, w, y)});
  });
  if (saved != nullptr) *saved = s;
  return y;
}

Tensor Linear::forward_residual(const Tensor& x, const Tensor& r, const Var& gamma, Saved* saved,
                                Tensor* z) const {
  if (!fuses() || z != nullptr) {
    const Tensor y = forward(x, saved);
    if (z != nullptr) *z = y;
    return residual_forward(r, y, gamma);
  }
  set_watched_layer(weight.name());
  const Span layer(weight.name(), Profile::Kind::part);
  const Saved s = project(x, saved != nullptr);
  const AdapterTail tail = tail_forward(s.u);
  const Tensor y = Tensor::empty({x.rows(), out()}, r.dtype());
  dispatch(compute_, [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    const Tensor& w = computed_weight();
    OF_RUN(queue_of(x), matmul_residual,
           MatmulResidual<T>{.a = x.data<T>(),
                             .b = w.data<T>(),
                             .tail = tail.of<T>(),
                             .bias = data_or_null<R>(bias),
                             .gamma = data_or_null<R>(gamma),
                             .x = r.data<R>(),
                             .ldx = r.pitch(),
                             .y = y.data<R>(),
                             .shape = shape_of_forward(x, w, y)});
  });
  if (saved != nullptr) *saved = s;
  return y;
}

Linear::Saved Linear::project(const Tensor& x, bool for_backward) const {
  Saved s;
  if (for_backward) s.x = x;
  if (adapters.active_rank() > 0 && (for_backward || !merged())) s.u = adapters.down(x);
  return s;
}

Tensor Linear::backward(const Tensor& dy, const Saved& saved, bool need_dx,
                        SliceObserver* observer) const {
  set_watched_layer(weight.name());
  const Span layer(weight.name(), Profile::Kind::part);
  const Tensor du = gradients_above(dy, saved, observer);
  Tensor dx;
  if (need_dx) {
    dx = Tensor::empty({saved.x.rows(), in()}, compute_);
    product_transposed(dy, tail_backward(du), dx);
  }
  if (du.defined()) adapters.down_backward(du, saved.x, apart() ? dx : Tensor());
  return dx;
}

Tensor Linear::backward_gelu(const Tensor& dy, const Saved& saved, const Tensor& f, GeluKind kind,
                             SliceObserver* observer) const {
  if (!fuses()) {
    const Tensor df = backward(dy, saved, /*need_dx=*/true, observer);
    gelu_backward(df, f, df, kind);
    return df;
  }
  set_watched_layer(weight.name());
  const Span layer(weight.name(), Profile::Kind::part);
  const Tensor du = gradients_above(dy, saved, observer);
  const AdapterTail tail = tail_backward(du);
  const Tensor df = Tensor::empty({dy.rows(), in()}, compute_);
  dispatch(compute_, [&]<class T>(Tag<T>) {
    const Tensor& w = computed_weight();
    OF_RUN(queue_of(dy), matmul_gelu_backward,
           MatmulGeluBackward<T>{.a = dy.data<T>(),
                                 .b = w.data<T>(),
                                 .tail = tail.of<T>(),
                                 .h = f.data<T>(),
                                 .ldh = f.pitch(),
                                 .dx = df.data<T>(),
                                 .kind = kind,
                                 .shape = shape_of_backward(dy, w, df)});
  });
  if (du.defined()) adapters.down_backward(du, saved.x, Tensor());
  return df;
}

Tensor Linear::gradients_above(const Tensor& dy, const Saved& saved,
                               SliceObserver* observer) const {
  OF_CHECK(!merged() || observer == nullptr || !observer->adds_to_du(),
           "what is added to du does not reach dx of merged adapters");
  base_gradients(dy, saved.x);
  return saved.u.defined() ? adapters.up_backward(dy, saved.u, observer) : Tensor();
}

void Linear::base_gradients(const Tensor& dy, const Tensor& x) const {
  dispatch(compute_, [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    if (weight.requires_grad()) {  // dW [out, in] = dy^T x
      const GradTarget dw = weight.grad_target();
      OF_RUN(queue_of(dy), matmul,
             Matmul<T, R>{.a = dy.data<T>(),
                          .b = x.data<T>(),
                          .c = dw.buffer.data<R>(),
                          .accumulate = dw.accumulate,
                          .shape = {.m = out(),
                                    .n = in(),
                                    .k = x.rows(),
                                    .lda = dy.pitch(),
                                    .ldb = x.pitch(),
                                    .ldc = dw.buffer.pitch(),
                                    .op_a = Op::transpose}});
    }
    if (bias.requires_grad()) {
      const GradTarget db = bias.grad_target();
      OF_RUN(queue_of(dy, gpu::bias_backward_scratch(dy.rows(), out())), bias_backward,
             BiasBackward<T>{.dy = dy.data<T>(),
                             .lddy = dy.pitch(),
                             .db = db.buffer.data<R>(),
                             .accumulate = db.accumulate,
                             .rows = dy.rows(),
                             .cols = out()});
    }
  });
}

bool Linear::trainable() const {
  return weight.requires_grad() || bias.requires_grad() || adapters.trainable();
}

void Linear::set_strategy(AdapterStrategy strategy) {
  OF_CHECK(strategy == AdapterStrategy::unmerged || !quantized(),
           "adapters do not go into FP8 products");
  strategy_ = strategy;
  if (strategy != AdapterStrategy::merged) merged_ = Tensor();
  refresh_adapters();
}

void Linear::refresh_adapters() {
  if (adapters.empty()) return;
  set_watched_layer(weight.name());
  const Span layer(weight.name(), Profile::Kind::part);
  adapters.gather();
  if (extended()) adapters.gather_tails(compute_, out());
  if (strategy_ != AdapterStrategy::merged) return;
  if (!merged()) {
    const LastingMemory kept;
    merged_ = Tensor::empty(weight.shape(), compute_);
    merged_.copy_from(weight.value());
  }
  adapters.merge(weight.value(), merged_);
}

void Linear::quantize() {
  if (quantized()) return;
  OF_CHECK(
      compute_ == DType::bf16 && !weight.requires_grad() && strategy_ == AdapterStrategy::unmerged,
      "FP8 is for frozen weights beside bf16 activations, with the adapters apart");
  fp8_.forward = Fp8Matrix(weight.value());
  fp8_.backward = Fp8Matrix(transposed(weight.value()));
  frozen_ = Tensor();  // nobody multiplies by it any more
}

Var linear(Tape& tape, const Linear& layer, const Var& x) {
  const bool needed = tape.recording() && (x.requires_grad() || layer.trainable());
  auto saved = std::make_shared<Linear::Saved>();
  const Var y = tape.output(layer.forward(x.value(), needed ? saved.get() : nullptr), needed);
  if (needed) {
    tape.record({y}, [&layer, x, y, saved] {
      const Tensor dx = layer.backward(y.grad(), *saved, x.requires_grad());
      if (x.requires_grad()) x.give_grad(dx);
    });
  }
  return y;
}

}  // namespace orthofed
