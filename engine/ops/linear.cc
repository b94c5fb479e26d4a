#include "engine/ops/linear.h"

#include <fmt/core.h>

#include <algorithm>

#include "engine/ops/gelu.h"
#include "engine/ops/residual.h"
#include "engine/tensor/profile.h"
#include "engine/tensor/watch.h"
#include "kernels/lora/lora.h"
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
  const T* from = x.data<T>();
  on_device<T>(
      queue_of(x), "packed_matmul",
      [&w](const T* a, int64_t lda, T* c, int64_t ldc, const Accum<T>* b, const MatmulShape& s) {
        w.multiply(a, lda, c, ldc, b, false, s.m);
      },
      [](const auto&...) { OF_CHECK(false, "a packed product on a device"); },
      [](const T* a, int64_t, T* c, int64_t, const Accum<T>* b, const MatmulShape& s) {
        return cost::packed_matmul<T, T>(a, c, b, false, s);
      },
      from, x.pitch(), y.data<T>(), y.pitch(), bias,
      MatmulShape{.m = x.rows(), .n = y.cols(), .k = x.cols()});
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

void Linear::product(const Tensor& x, const Tail& tail, const Tensor& y) const {
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
      of_on(queue_of(x), matmul_extended, T)(x.data<T>(), w.data<T>(), tail.of<T>(), y.data<T>(), b,
                                             shape_of_forward(x, w, y));
    else
      of_on(queue_of(x), matmul, T, T)(x.data<T>(), w.data<T>(), y.data<T>(), b, false,
                                       shape_of_forward(x, w, y));
  });
}

void Linear::product_transposed(const Tensor& dy, const Tail& tail, const Tensor& dx) const {
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
      of_on(queue_of(dy), matmul_extended, T)(dy.data<T>(), w.data<T>(), tail.of<T>(), dx.data<T>(),
                                              nullptr, shape_of_backward(dy, w, dx));
    else
      of_on(queue_of(dy), matmul, T, T)(dy.data<T>(), w.data<T>(), dx.data<T>(), nullptr, false,
                                        shape_of_backward(dy, w, dx));
  });
}

std::vector<Linear::Column> Linear::stack() const {
  std::vector<Column> columns;
  int64_t begin = 0;
  for (size_t i = 0; i < slices.size(); ++i) {
    int64_t in_slice = 0;
    for (const Adapter* adapter : {&slices[i].general, &slices[i].personal}) {
      if (!adapter->present() || !adapter->active) continue;
      columns.push_back({adapter, i, begin + in_slice, in_slice});
      in_slice += adapter->rank();
    }
    begin += in_slice;
  }
  return columns;
}

bool Linear::extended() const {
  return extend_ && compute_ == DType::bf16 && weight.value().device() != Device::cpu;
}

bool Linear::fuses() const {
  const bool packs = dispatch(compute_, [&]<class T>(Tag<T>) { return packed<T>() != nullptr; });
  return !packs && !quantized() && (!apart() || stack().empty());
}

template <class T>
MatmulTail<T> Linear::Tail::of() const {
  if (!u.defined()) return {};
  return {u.data<T>(), u.pitch(), v.data<T>(), v.pitch(), u.cols(), parts};
}

// V = T(s B) [out, R], a block for each slice.
Linear::Tail Linear::tail_forward(const Saved& saved) const {
  if (!extended() || !saved.u.defined()) return {};
  const Shape shape{out(), saved.u.cols()};
  const bool whole = slices.size() == 1 && slices[0].rows == out();
  Tail tail{saved.u, whole ? Tensor::empty(shape, compute_) : Tensor::zeros(shape, compute_)};
  std::vector<MatmulTailPart> parts;
  dispatch(compute_, [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    int64_t rank = 0;
    for (size_t i = 0; i < slices.size(); ++i) {
      const Tensor& b = saved.b[i];
      if (!b.defined()) continue;
      const MatmulTailPart part{slices[i].begin, slices[i].begin + b.rows(), rank, rank + b.cols()};
      of_on(queue_of(b), lora_scale, T)(b.data<R>(), b.pitch(), as<R>(saved.scales) + rank,
                                        tail.v.row<T>(part.begin) + rank, tail.v.pitch(), b.rows(),
                                        b.cols());
      parts.push_back(part);
      rank += b.cols();
    }
  });
  if (parts.size() <= tail.parts.size()) std::copy(parts.begin(), parts.end(), tail.parts.begin());
  return tail;
}

Linear::Tail Linear::tail_backward(const Tensor& du, const Saved& saved) const {
  if (!extended() || !du.defined()) return {};
  return {du, saved.a.to(compute_)};
}

Tensor Linear::forward(const Tensor& x, Saved* saved) const {
  OF_CHECK(x.cols() == in(), fmt::format("{} inputs expected, {} given", in(), x.cols()));
  set_watched_layer(weight.name());
  const Span layer(weight.name(), Profile::Kind::part);
  const Saved s = project(x, saved != nullptr);
  const Tensor y = Tensor::empty({x.rows(), out()}, compute_);
  product(x, tail_forward(s), y);
  if (apart() && s.u.defined()) {
    dispatch(compute_, [&]<class T>(Tag<T>) {
      using R = Accum<T>;
      int64_t begin = 0;
      for (size_t i = 0; i < slices.size(); ++i) {
        const Tensor& b = s.b[i];
        if (!b.defined()) continue;
        of_on(queue_of(x), lora_up, T)(s.u.data<T>() + begin, s.u.pitch(), b.data<R>(), b.pitch(),
                                       as<R>(s.scales) + begin, y.data<T>() + slices[i].begin,
                                       y.pitch(), x.rows(), b.rows(), b.cols());
        begin += b.cols();
      }
    });
  }
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
  const Tail tail = tail_forward(s);
  *f = Tensor::empty({x.rows(), out()}, compute_);
  const Tensor y = Tensor::empty({x.rows(), out()}, compute_);
  dispatch(compute_, [&]<class T>(Tag<T>) {
    const Tensor& w = computed_weight();
    of_on(queue_of(x), matmul_gelu, T)(x.data<T>(), w.data<T>(), tail.of<T>(),
                                       data_or_null<Accum<T>>(bias), f->data<T>(), f->pitch(),
                                       y.data<T>(), kind, shape_of_forward(x, w, y));
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
  const Tail tail = tail_forward(s);
  const Tensor y = Tensor::empty({x.rows(), out()}, r.dtype());
  dispatch(compute_, [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    const Tensor& w = computed_weight();
    of_on(queue_of(x), matmul_residual, T)(
        x.data<T>(), w.data<T>(), tail.of<T>(), data_or_null<R>(bias), data_or_null<R>(gamma),
        r.data<R>(), r.pitch(), y.data<R>(), shape_of_forward(x, w, y));
  });
  if (saved != nullptr) *saved = s;
  return y;
}

Linear::Saved Linear::project(const Tensor& x, bool for_backward) const {
  const std::vector<Column> columns = stack();
  Saved s;
  if (for_backward) s.x = x;
  if (columns.empty() || (merged() && !for_backward)) return s;

  // The stack is a few hundred rows of A and B: copying it costs less than a page of activations.
  const int64_t rank = columns.back().begin + columns.back().adapter->rank();
  const DType sums = accum(compute_);
  s.a = Tensor::empty({rank, in()}, sums);
  s.b.assign(slices.size(), Tensor());
  for (const Column& c : columns)
    s.a.row_range(c.begin, c.begin + c.adapter->rank()).copy_from(c.adapter->a.value());
  s.u = Tensor::empty({x.rows(), rank}, compute_);
  dispatch(compute_, [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    std::vector<R> scales;  // [rank]
    for (const Column& c : columns)
      scales.insert(scales.end(), size_t(c.adapter->rank()), R(c.adapter->scale));
    s.scales = scales_.of(scales);
    of_on(queue_of(x), lora_down, T)(x.data<T>(), x.pitch(), s.a.data<R>(), s.a.pitch(),
                                     s.u.data<T>(), s.u.pitch(), x.rows(), in(), rank);
  });
  for (size_t i = 0; i < slices.size(); ++i) {
    int64_t width = 0;
    for (const Column& c : columns)
      if (c.slice == i) width += c.adapter->rank();
    if (width == 0) continue;
    s.b[i] = Tensor::empty({slices[i].rows, width}, sums);
    for (const Column& c : columns)
      if (c.slice == i)
        s.b[i]
            .columns(c.begin_in_slice, c.begin_in_slice + c.adapter->rank())
            .copy_from(c.adapter->b.value());
  }
  return s;
}

Tensor Linear::backward(const Tensor& dy, const Saved& saved, bool need_dx,
                        FeaturesPenalty* features) const {
  set_watched_layer(weight.name());
  const Span layer(weight.name(), Profile::Kind::part);
  const Tensor du = gradients_above(dy, saved, features);
  Tensor dx;
  if (need_dx) {
    dx = Tensor::empty({saved.x.rows(), in()}, compute_);
    product_transposed(dy, tail_backward(du, saved), dx);
  }
  gradients_below(du, saved, apart() ? dx : Tensor());
  return dx;
}

Tensor Linear::backward_gelu(const Tensor& dy, const Saved& saved, const Tensor& f, GeluKind kind,
                             FeaturesPenalty* features) const {
  if (!fuses()) {
    const Tensor df = backward(dy, saved, /*need_dx=*/true, features);
    gelu_backward(df, f, df, kind);
    return df;
  }
  set_watched_layer(weight.name());
  const Span layer(weight.name(), Profile::Kind::part);
  const Tensor du = gradients_above(dy, saved, features);
  const Tail tail = tail_backward(du, saved);
  const Tensor df = Tensor::empty({dy.rows(), in()}, compute_);
  dispatch(compute_, [&]<class T>(Tag<T>) {
    const Tensor& w = computed_weight();
    of_on(queue_of(dy), matmul_gelu_backward, T)(dy.data<T>(), w.data<T>(), tail.of<T>(),
                                                 f.data<T>(), f.pitch(), df.data<T>(), kind,
                                                 shape_of_backward(dy, w, df));
  });
  gradients_below(du, saved, Tensor());
  return df;
}

Tensor Linear::gradients_above(const Tensor& dy, const Saved& saved,
                               FeaturesPenalty* features) const {
  const Tensor& x = saved.x;
  OF_CHECK(!merged() || features == nullptr || features->weight == nullptr,
           "the features penalty changes dx, which merged adapters do not add to");
  Tensor du;
  dispatch(compute_, [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    if (weight.requires_grad()) {  // dW [out, in] = dy^T x
      const GradTarget dw = weight.grad_target();
      of_on(queue_of(dy), matmul, T, R)(dy.data<T>(), x.data<T>(), dw.buffer.data<R>(), nullptr,
                                        dw.accumulate,
                                        MatmulShape{.m = out(),
                                                    .n = in(),
                                                    .k = x.rows(),
                                                    .lda = dy.pitch(),
                                                    .ldb = x.pitch(),
                                                    .ldc = dw.buffer.pitch(),
                                                    .op_a = Op::transpose});
    }
    if (bias.requires_grad()) {
      const GradTarget db = bias.grad_target();
      of_on(queue_of(dy, gpu::bias_backward_scratch(dy.rows(), out())), bias_backward, T)(
          dy.data<T>(), dy.pitch(), db.buffer.data<R>(), db.accumulate, dy.rows(), out());
    }

    const std::vector<Column> columns = stack();
    if (columns.empty()) return;
    du = Tensor::empty(saved.u.shape(), compute_);
    for (size_t i = 0; i < slices.size(); ++i) {
      if (!saved.b[i].defined()) continue;
      int64_t begin = -1;
      for (const Column& c : columns)
        if (c.slice == i && begin < 0) begin = c.begin;
      const AdapterSlice& slice = slices[i];
      Tensor db = Tensor::empty(saved.b[i].shape(), accum(compute_));
      of_on(queue_of(dy, gpu::lora_up_backward_scratch<T>(x.rows(), slice.rows, saved.b[i].cols())),
            lora_up_backward, T)(dy.data<T>() + slice.begin, dy.pitch(), saved.u.data<T>() + begin,
                                 saved.u.pitch(), saved.b[i].data<R>(), saved.b[i].pitch(),
                                 as<R>(saved.scales) + begin, du.data<T>() + begin, du.pitch(),
                                 db.data<R>(), db.pitch(), false, x.rows(), slice.rows,
                                 saved.b[i].cols());
      for (const Column& c : columns)
        if (c.slice == i)
          c.adapter->b.add_grad(db.columns(c.begin_in_slice, c.begin_in_slice + c.adapter->rank()));

      const bool pair = slice.general.present() && slice.general.active &&
                        slice.personal.present() && slice.personal.active;
      if (features != nullptr && pair) {
        const int64_t rows = features->rows > 0 ? std::min(features->rows, x.rows()) : x.rows();
        const int64_t rg = slice.general.rank(), rp = slice.personal.rank();
        const Tensor b_g = slice.general.b.value().contiguous();
        const Tensor b_p = slice.personal.b.value().contiguous();
        Tensor extra = Tensor::zeros({rows, rg + rp}, accum(compute_));
        Tensor db_g = Tensor::dense_zeros(b_g.shape(), accum(compute_));
        Tensor db_p = Tensor::dense_zeros(b_p.shape(), accum(compute_));
        const bool weighted = features->weight != nullptr;
        const Tensor zero = weighted ? Tensor() : Tensor::dense_zeros({1}, DType::f64);
        OF_RUN(queue_of(extra, gpu::orthogonality_features_scratch(rows, rg, rp)),
               orthogonality_features,
               OrthogonalityFeatures<T>{.u_g = saved.u.data<T>() + begin,
                                        .ld_g = saved.u.pitch(),
                                        .u_p = saved.u.data<T>() + begin + rg,
                                        .ld_p = saved.u.pitch(),
                                        .b_g = b_g.data<R>(),
                                        .b_p = b_p.data<R>(),
                                        .rows = rows,
                                        .out = slice.rows,
                                        .rank_g = rg,
                                        .rank_p = rp,
                                        .form = features->form,
                                        .weight = weighted ? features->weight : zero.data<double>(),
                                        .du_g = extra.data<R>(),
                                        .ldd_g = extra.pitch(),
                                        .du_p = extra.data<R>() + rg,
                                        .ldd_p = extra.pitch(),
                                        .db_g = db_g.data<R>(),
                                        .db_p = db_p.data<R>(),
                                        .value = features->values + features->layers++});
        if (weighted) {
          const int64_t from = features->detach_general ? rg : 0;
          const Tensor part = du.row_range(0, rows).columns(begin + from, begin + rg + rp);
          part.add(extra.columns(from, rg + rp).to(compute_));
          if (!features->detach_general) slice.general.b.add_grad(db_g);
          slice.personal.b.add_grad(db_p);
        }
      }
    }
  });
  return du;
}

void Linear::gradients_below(const Tensor& du, const Saved& saved, const Tensor& dx) const {
  if (!du.defined()) return;
  const Tensor& x = saved.x;
  const int64_t rank = du.cols();
  const Tensor da = Tensor::empty(saved.a.shape(), accum(compute_));
  dispatch(compute_, [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    of_on(queue_of(x, gpu::lora_down_backward_scratch<T>(x.rows(), in(), rank)), lora_down_backward,
          T)(du.data<T>(), du.pitch(), x.data<T>(), x.pitch(), saved.a.data<R>(), saved.a.pitch(),
             da.data<R>(), da.pitch(), false, dx.defined() ? dx.data<T>() : nullptr,
             dx.defined() ? dx.pitch() : 0, x.rows(), in(), rank);
  });
  for (const Column& c : stack())
    c.adapter->a.add_grad(da.row_range(c.begin, c.begin + c.adapter->rank()));
}

bool Linear::trainable() const {
  if (weight.requires_grad() || bias.requires_grad()) return true;
  for (const AdapterSlice& s : slices)
    for (const Adapter* a : {&s.general, &s.personal})
      if (a->present() && a->active && (a->a.requires_grad() || a->b.requires_grad())) return true;
  return false;
}

void Linear::extend() {
  OF_CHECK(!quantized(), "adapters do not go into FP8 products");
  unmerge();
  extend_ = true;
}

void Linear::unmerge() {
  merged_ = Tensor();
  extend_ = false;
}

void Linear::quantize() {
  if (quantized()) return;
  OF_CHECK(compute_ == DType::bf16 && !weight.requires_grad() && apart(),
           "FP8 is for frozen weights beside bf16 activations, with the adapters apart");
  fp8_.forward = Fp8Matrix(weight.value());
  fp8_.backward = Fp8Matrix(transposed(weight.value()));
  frozen_ = Tensor();  // nobody multiplies by it any more
}

void Linear::merge() {
  if (slices.empty()) return;
  OF_CHECK(!quantized(), "adapters do not go into FP8 products");
  extend_ = false;
  if (!merged()) {
    const LastingMemory kept;
    const Tensor copy = Tensor::empty(weight.shape(), compute_);
    copy.copy_from(weight.value());
    merged_ = copy;
  }
  set_watched_layer(weight.name());
  const Span layer(weight.name(), Profile::Kind::part);
  const std::vector<Column> columns = stack();
  const DType sums = accum(compute_);
  dispatch(compute_, [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    for (size_t i = 0; i < slices.size(); ++i) {
      std::vector<R> scales;  // of the slice's active adapters; none: W itself
      for (const Column& c : columns)
        if (c.slice == i)
          scales.insert(scales.end(), size_t(c.adapter->rank()), R(c.adapter->scale));
      const auto rank = int64_t(scales.size());
      const Tensor a = Tensor::empty({rank, in()}, sums);
      const Tensor b = Tensor::empty({slices[i].rows, rank}, sums);
      for (const Column& c : columns) {
        if (c.slice != i) continue;
        const int64_t begin = c.begin_in_slice, end = begin + c.adapter->rank();
        a.row_range(begin, end).copy_from(c.adapter->a.value());
        b.columns(begin, end).copy_from(c.adapter->b.value());
      }
      const Tensor& kept_scales = scales_.of(scales);
      const Tensor w = weight.value().row_range(slices[i].begin, slices[i].begin + slices[i].rows);
      T* to =
          merged_.row_range(slices[i].begin, slices[i].begin + slices[i].rows).template data<T>();
      of_on(queue_of(w), lora_merge, T)(w.data<R>(), w.pitch(), a.data<R>(), a.pitch(), b.data<R>(),
                                        b.pitch(), as<R>(kept_scales), to, merged_.pitch(),
                                        slices[i].rows, in(), rank);
    }
  });
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
