#include "engine/ops/adapter_stack.h"

#include <algorithm>
#include <utility>

#include "engine/tensor/bytes.h"
#include "kernels/lora/lora.h"

namespace orthofed {

const Adapter* AdapterSlice::find(const std::string& adapter) const {
  const auto found = std::find_if(adapters.begin(), adapters.end(),
                                  [&](const Adapter& a) { return a.name == adapter; });
  return found == adapters.end() ? nullptr : &*found;
}

Adapter* AdapterSlice::find(const std::string& adapter) {
  return const_cast<Adapter*>(std::as_const(*this).find(adapter));
}

int64_t AdapterSlice::active_rank() const {
  int64_t rank = 0;
  for (const Adapter& a : adapters)
    if (a.active) rank += a.rank();
  return rank;
}

Tensor AdapterSlice::columns_of(const Adapter& adapter, const Tensor& all) const {
  int64_t column = 0;
  for (const Adapter& a : adapters) {
    if (&a == &adapter) return all.columns(column, column + a.rank());
    if (a.active) column += a.rank();
  }
  throw Error("an adapter of another slice");
}

void AdapterStack::add(const std::string& slice, int64_t begin, int64_t rows,
                       const Adapter& adapter) {
  auto at = std::find_if(slices_.begin(), slices_.end(),
                         [&](const AdapterSlice& s) { return s.name == slice; });
  if (at == slices_.end()) at = slices_.insert(slices_.end(), {slice, begin, rows});
  OF_CHECK(at->begin == begin && at->rows == rows && adapter.b.value().rows() == rows &&
               adapter.b.value().cols() == adapter.rank(),
           "an adapter fits its slice");
  const auto after =
      std::lower_bound(at->adapters.begin(), at->adapters.end(), adapter.name,
                       [](const Adapter& a, const std::string& name) { return a.name < name; });
  OF_CHECK(after == at->adapters.end() || after->name != adapter.name,
           "adapters are attached once");
  at->adapters.insert(after, adapter);

  int64_t rank = 0;
  for (const AdapterSlice& s : slices_)
    for (const Adapter& a : s.adapters) rank += a.rank();
  const Tensor& first = adapter.a.value();
  a_ = Tensor::empty({rank, first.cols()}, first.dtype(), first.device());
  int64_t row = 0;
  for (AdapterSlice& s : slices_)
    for (Adapter& a : s.adapters) {
      const Tensor rows_of_a = a_.row_range(row, row + a.rank());
      rows_of_a.copy_from(a.a.value());
      row += a.rank();
      a.a = Var(rows_of_a, a.a.requires_grad(), a.a.name());
    }
  operands_.clear();
  gathered_.clear();
}

int64_t AdapterStack::active_rank() const {
  int64_t rank = 0;
  for (const AdapterSlice& s : slices_) rank += s.active_rank();
  return rank;
}

bool AdapterStack::trainable() const {
  for (const AdapterSlice& s : slices_)
    for (const Adapter& a : s.adapters)
      if (a.active && a.trainable()) return true;
  return false;
}

std::vector<bool> AdapterStack::active() const {
  std::vector<bool> flags;
  for (const AdapterSlice& s : slices_)
    for (const Adapter& a : s.adapters) flags.push_back(a.active);
  return flags;
}

AdapterStack::Operands AdapterStack::make_operands() const {
  const LastingMemory kept;
  Operands o;
  const int64_t rank = active_rank();
  if (rank == 0) return o;
  std::vector<Tensor> a;                // of the active ones
  std::vector<double> scales;           // [R]
  int64_t row = 0, first = 0, end = 0;  // of a_: here, and of the active ones
  for (size_t i = 0; i < slices_.size(); ++i) {
    const AdapterSlice& slice = slices_[i];
    Part part{i, int64_t(scales.size()), slice.active_rank(), {}};
    for (const Adapter& adapter : slice.adapters) {
      const int64_t r = adapter.rank();
      row += r;
      if (!adapter.active) continue;
      if (a.empty()) first = row - r;
      end = row;
      a.push_back(adapter.a.value());
      scales.insert(scales.end(), size_t(r), adapter.scale);
      if (part.rank == r) {
        part.b = adapter.b.value();  // the only one
        continue;
      }
      if (!part.b.defined())
        part.b = Tensor::empty({slice.rows, part.rank}, a_.dtype(), a_.device());
      o.copies.push_back({adapter.b.value(), slice.columns_of(adapter, part.b)});
    }
    if (part.rank > 0) o.parts.push_back(part);
  }
  if (end - first == rank) {
    o.a = a_.row_range(first, end);
  } else {
    o.a = Tensor::empty({rank, a_.cols()}, a_.dtype(), a_.device());
    int64_t to = 0;
    for (const Tensor& from : a) {
      o.copies.push_back({from, o.a.row_range(to, to + from.rows())});
      to += from.rows();
    }
  }
  dispatch_accum(a_.dtype(), [&]<class R>(Tag<R>) {
    o.scales = bytes_of(std::vector<R>(scales.begin(), scales.end()));
  });
  return o;
}

void AdapterStack::gather() {
  gathered_ = active();
  auto found = operands_.find(gathered_);
  if (found == operands_.end()) found = operands_.emplace(gathered_, make_operands()).first;
  for (const Copy& c : found->second.copies) c.to.copy_from(c.from);
}

const AdapterStack::Operands& AdapterStack::operands() const {
  OF_CHECK(gathered_ == active(), "an adapter was added or switched without gather()");
  return operands_.at(gathered_);
}

void AdapterStack::gather_tails(DType compute, int64_t out) {
  Operands& o = operands_.at(gathered_);
  if (o.parts.empty()) return;
  if (!o.scaled_b.defined()) {
    const LastingMemory kept;
    o.scaled_b = Tensor::zeros({out, o.a.rows()}, compute);  // outside of the parts it stays zero
    o.rounded_a = Tensor::empty(o.a.shape(), compute);
  }
  dispatch(compute, [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    for (const Part& p : o.parts)
      OF_RUN(queue_of(p.b), lora_scale,
             LoraScale<T>{.b = p.b.data<R>(),
                          .ldb = p.b.pitch(),
                          .scale = as<R>(o.scales) + p.begin,
                          .v = o.scaled_b.row<T>(slices_[p.slice].begin) + p.begin,
                          .ldv = o.scaled_b.pitch(),
                          .out = p.b.rows(),
                          .rank = p.rank});
  });
  o.rounded_a.copy_from(o.a);
}

Tensor AdapterStack::down(const Tensor& x) const {
  const Operands& o = operands();
  const Tensor u = Tensor::empty({x.rows(), o.a.rows()}, x.dtype());
  dispatch(x.dtype(), [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    OF_RUN(queue_of(x), lora_down,
           LoraDown<T>{.x = x.data<T>(),
                       .ldx = x.pitch(),
                       .a = o.a.data<R>(),
                       .lda = o.a.pitch(),
                       .u = u.data<T>(),
                       .ldu = u.pitch(),
                       .rows = x.rows(),
                       .in = x.cols(),
                       .rank = o.a.rows()});
  });
  return u;
}

void AdapterStack::up(const Tensor& u, const Tensor& y) const {
  const Operands& o = operands();
  dispatch(y.dtype(), [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    for (const Part& p : o.parts)
      OF_RUN(queue_of(y), lora_up,
             LoraUp<T>{.u = u.data<T>() + p.begin,
                       .ldu = u.pitch(),
                       .b = p.b.data<R>(),
                       .ldb = p.b.pitch(),
                       .scale = as<R>(o.scales) + p.begin,
                       .y = y.data<T>() + slices_[p.slice].begin,
                       .ldy = y.pitch(),
                       .rows = y.rows(),
                       .out = p.b.rows(),
                       .rank = p.rank});
  });
}

Tensor AdapterStack::up_backward(const Tensor& dy, const Tensor& u, SliceObserver* observer) const {
  const Operands& o = operands();
  const Tensor du = Tensor::empty(u.shape(), u.dtype());
  dispatch(dy.dtype(), [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    for (const Part& p : o.parts) {
      const AdapterSlice& slice = slices_[p.slice];
      const Tensor u_p = u.columns(p.begin, p.begin + p.rank),
                   du_p = du.columns(p.begin, p.begin + p.rank),
                   db = Tensor::empty(p.b.shape(), p.b.dtype());
      OF_RUN(queue_of(dy, gpu::lora_up_backward_scratch<T>(dy.rows(), slice.rows, p.rank)),
             lora_up_backward,
             LoraUpBackward<T>{.dy = dy.data<T>() + slice.begin,
                               .lddy = dy.pitch(),
                               .u = u_p.data<T>(),
                               .ldu = u_p.pitch(),
                               .b = p.b.data<R>(),
                               .ldb = p.b.pitch(),
                               .scale = as<R>(o.scales) + p.begin,
                               .du = du_p.data<T>(),
                               .lddu = du_p.pitch(),
                               .db = db.data<R>(),
                               .lddb = db.pitch(),
                               .rows = dy.rows(),
                               .out = slice.rows,
                               .rank = p.rank});
      for (const Adapter& a : slice.adapters)
        if (a.active) a.b.add_grad(slice.columns_of(a, db));
      if (observer != nullptr) observer->backward(slice, u_p, du_p);
    }
  });
  return du;
}

void AdapterStack::down_backward(const Tensor& du, const Tensor& x, const Tensor& dx) const {
  const Operands& o = operands();
  const int64_t rank = o.a.rows();
  const Tensor da = Tensor::empty(o.a.shape(), o.a.dtype());
  dispatch(x.dtype(), [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    OF_RUN(queue_of(x, gpu::lora_down_backward_scratch<T>(x.rows(), x.cols(), rank)),
           lora_down_backward,
           LoraDownBackward<T>{.du = du.data<T>(),
                               .lddu = du.pitch(),
                               .x = x.data<T>(),
                               .ldx = x.pitch(),
                               .a = o.a.data<R>(),
                               .lda = o.a.pitch(),
                               .da = da.data<R>(),
                               .ldda = da.pitch(),
                               .dx = dx.defined() ? dx.data<T>() : nullptr,
                               .lddx = dx.defined() ? dx.pitch() : 0,
                               .rows = x.rows(),
                               .in = x.cols(),
                               .rank = rank});
  });
  int64_t row = 0;
  for (const AdapterSlice& slice : slices_)
    for (const Adapter& a : slice.adapters) {
      if (!a.active) continue;
      a.a.add_grad(da.row_range(row, row + a.rank()));
      row += a.rank();
    }
}

AdapterTail AdapterStack::up_tail(const Tensor& u) const {
  const Operands& o = operands();
  AdapterTail tail{u, o.scaled_b};
  if (o.parts.size() > tail.parts.size()) return tail;  // all of V counts
  for (size_t i = 0; i < o.parts.size(); ++i) {
    const Part& p = o.parts[i];
    const AdapterSlice& slice = slices_[p.slice];
    tail.parts[i] = {slice.begin, slice.begin + slice.rows, p.begin, p.begin + p.rank};
  }
  return tail;
}

AdapterTail AdapterStack::down_tail(const Tensor& du) const {
  return {du, operands().rounded_a};
}

void AdapterStack::merge(const Tensor& w, const Tensor& merged) const {
  const Operands& o = operands();
  const auto rows_of = [](const AdapterSlice& slice, const Tensor& t) {
    return t.row_range(slice.begin, slice.begin + slice.rows);
  };
  for (const AdapterSlice& slice : slices_)
    if (slice.active_rank() == 0) rows_of(slice, merged).copy_from(rows_of(slice, w));
  dispatch(merged.dtype(), [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    for (const Part& p : o.parts) {
      const Tensor from = rows_of(slices_[p.slice], w), to = rows_of(slices_[p.slice], merged);
      OF_RUN(queue_of(w), lora_merge,
             LoraMerge<T>{.w = from.data<R>(),
                          .ldw = from.pitch(),
                          .a = o.a.row<R>(p.begin),
                          .lda = o.a.pitch(),
                          .b = p.b.data<R>(),
                          .ldb = p.b.pitch(),
                          .scale = as<R>(o.scales) + p.begin,
                          .merged = to.data<T>(),
                          .ldm = to.pitch(),
                          .out = from.rows(),
                          .in = w.cols(),
                          .rank = p.rank});
    }
  });
}

}  // namespace orthofed
