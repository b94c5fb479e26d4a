#include "models/training/penalty.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "engine/tensor/allocator.h"
#include "engine/tensor/bytes.h"
#include "kernels/orthogonality/singular_vectors.h"
#include "models/config/check.h"

namespace orthofed {
namespace {

constexpr const char* kKinds[] = {"update", "base", "subspace", "subspace_l1", "base_subspace"};

}  // namespace

Penalties::Penalties(Vit& model, const PenaltyConfig& config)
    : config_(config), form_(config.form) {
  require_compatible({}, config, {});
  for (const Linear* linear : adapted_layers(model)) {
    for (const AdapterSlice& slice : linear->adapters.slices()) {
      Layer layer{.general = adapter_of(slice, AdapterKind::general),
                  .personal = adapter_of(slice, AdapterKind::personal),
                  .w0 = linear->weight.value().row_range(slice.begin, slice.begin + slice.rows)};
      if (layer.general == nullptr || layer.personal == nullptr) continue;
      // Nothing is measured of adapters that are too wide for the kernels.
      const int64_t rank = std::max(layer.general->rank(), layer.personal->rank());
      if (rank > kMaxPenaltyRank && !config.any()) continue;
      if (rank > kMaxPenaltyRank)
        throw UserError(
            fmt::format("lora.rank: a penalty takes adapters of rank up to {}, found {}",
                        kMaxPenaltyRank, rank));
      const Tensor w0 = layer.w0.on(Device::cpu);
      dispatch_accum(w0.dtype(), [&]<class R>(Tag<R>) {
        for (int64_t i = 0; i < w0.rows(); ++i)
          for (int64_t j = 0; j < w0.cols(); ++j)
            layer.w0_norm2 += double(w0.row<R>(i)[j]) * double(w0.row<R>(i)[j]);
        if (config.base_subspace > 0) {
          const int64_t k = std::min({config.base_subspace_k, layer.w0.rows(), layer.w0.cols()});
          std::vector<R> v_k(size_t(k * w0.cols()));
          cpu::top_right_singular_vectors<R>(w0.data<R>(), w0.pitch(), w0.rows(), w0.cols(), k,
                                             v_k.data());
          layer.v_k = Tensor::of(v_k, {k * w0.cols()}).reshape({k, w0.cols()});
        }
      });
      layers_.push_back(std::move(layer));
    }
  }
  for (const char* kind : kKinds)
    if (lambda(kind) > 0) kinds_.emplace_back(kind);
  if (config.any() && layers_.empty())
    throw UserError("penalty: a penalty needs layers with a general and a personal adapter");
}

template <class R>
Penalties::List Penalties::make_list(bool general, bool personal) const {
  List list;
  std::vector<OrthogonalityLayer<R>> entries;
  for (const Layer& l : layers_) {
    const Adapter &g = *l.general, &p = *l.personal;
    OrthogonalityLayer<R> t;
    const auto dense = [&](const Var& v) {
      const Tensor& from = v.value();
      if (from.dense()) return from.data<R>();
      list.copies.push_back({from, Tensor::dense_zeros(from.shape(), from.dtype())});
      return list.copies.back().dense.data<R>();
    };
    t.in = g.a.value().cols();
    t.out = g.b.value().rows();
    t.rank_g = g.rank();
    t.rank_p = p.rank();
    t.a_g = dense(g.a);
    t.b_g = dense(g.b);
    t.a_p = dense(p.a);
    t.b_p = dense(p.b);
    t.w0 = l.w0.data<R>();
    t.ld_w0 = l.w0.pitch();
    t.w0_norm2 = l.w0_norm2;
    if (l.v_k.defined()) {
      t.v_k = l.v_k.data<R>();
      t.k = l.v_k.rows();
    }
    const auto wanted = [&](const Adapter& adapter, R*& da, R*& db) {
      list.gradients.push_back({&adapter, Tensor::dense_zeros(adapter.a.shape(), l.w0.dtype()),
                                Tensor::dense_zeros(adapter.b.shape(), l.w0.dtype())});
      da = list.gradients.back().a.data<R>();
      db = list.gradients.back().b.data<R>();
    };
    if (general) wanted(g, t.da_g, t.db_g);
    if (personal) wanted(p, t.da_p, t.db_p);
    entries.push_back(t);
  }
  list.entries = bytes_of(entries);
  return list;
}

template <class R>
const Penalties::List& Penalties::list(bool with_gradients) {
  const Layer& any = layers_.front();  // all train alike
  const bool general =
      with_gradients && config_.detach != PenaltyDetach::general && any.general->a.requires_grad();
  const bool personal = with_gradients && any.personal->a.requires_grad();
  auto found = lists_.find({general, personal});
  const LastingMemory kept;
  if (found == lists_.end())
    found = lists_.emplace(std::pair(general, personal), make_list<R>(general, personal)).first;
  for (const List::Copy& c : found->second.copies) c.dense.copy_from(c.from);
  for (const List::Gradient& g : found->second.gradients)
    for (const Tensor* t : {&g.a, &g.b}) t->fill(0);
  return found->second;
}

namespace {

// Writes the layers' values and adds *weight * gradient, all on the list's device.
template <class R>
void run_kind(const std::string& kind, const Tensor& list, int64_t count, PenaltyForm form,
              const double* weight, double* values) {
  const OrthogonalityPenalty<R> arguments{.layers = as<const OrthogonalityLayer<R>>(list),
                                          .count = count,
                                          .form = form,
                                          .weight = weight,
                                          .values = values};
  if (kind == "update")
    OF_RUN(queue_of(list), orthogonality_update, arguments);
  else if (kind == "base")
    OF_RUN(queue_of(list, gpu::orthogonality_base_scratch(count)), orthogonality_base, arguments);
  else if (kind == "subspace")
    OF_RUN(queue_of(list), orthogonality_subspace, arguments);
  else if (kind == "subspace_l1")
    OF_RUN(queue_of(list), orthogonality_subspace_l1, arguments);
  else
    OF_RUN(queue_of(list), orthogonality_base_subspace, arguments);
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double v : values) sum += v;
  return values.empty() ? 0 : sum / double(values.size());
}

}  // namespace

double Penalties::lambda(const std::string& kind) const {
  return kind == "update"        ? config_.update
         : kind == "base"        ? config_.base
         : kind == "subspace"    ? config_.subspace
         : kind == "subspace_l1" ? config_.subspace_l1
                                 : config_.base_subspace;
}

void Penalties::apply(const double* weights, double* values) {
  if (kinds_.empty()) return;
  dispatch_accum(layers_.front().w0.dtype(), [&]<class R>(Tag<R>) {
    const List& all = list<R>(true);
    for (size_t k = 0; k < kinds_.size(); ++k)
      run_kind<R>(kinds_[k], all.entries, layers(), form_, weights + k,
                  values + int64_t(k) * layers());
    for (const List::Gradient& g : all.gradients) {
      g.adapter->a.add_grad(g.a);
      g.adapter->b.add_grad(g.b);
    }
  });
}

std::vector<double> Penalties::weights(double factor) const {
  std::vector<double> weights;
  for (const std::string& kind : kinds_)
    weights.push_back(factor * lambda(kind) / double(layers()));
  return weights;
}

double Penalties::sum(const double* values) const {
  double total = 0;
  for (const std::string& kind : kinds_) {
    total += lambda(kind) * mean({values, values + layers()});
    values += layers();
  }
  return total;
}

FeaturesPenalty Penalties::features(int64_t valid_rows, const double* weight,
                                    double* values) const {
  return {form_ == PenaltyForm::raw2 ? PenaltyForm::cosine2 : form_,
          config_.detach == PenaltyDetach::general, valid_rows,
          features_lambda() > 0 ? weight : nullptr, values};
}

void FeaturesPenalty::backward(const AdapterSlice& slice, const Tensor& u, const Tensor& du) {
  const Adapter *g = adapter_of(slice, AdapterKind::general),
                *p = adapter_of(slice, AdapterKind::personal);
  if (g == nullptr || !g->active || p == nullptr || !p->active) return;
  const int64_t rows = std::min(rows_, u.rows());
  const Tensor b_g = g->b.value().contiguous(), b_p = p->b.value().contiguous();
  const DType sums = b_g.dtype();
  const Tensor u_g = slice.columns_of(*g, u), u_p = slice.columns_of(*p, u);  // [rows, r]
  const Tensor extra = Tensor::zeros({rows, u.cols()}, sums);                 // of du
  const Tensor extra_g = slice.columns_of(*g, extra), extra_p = slice.columns_of(*p, extra);
  const Tensor db_g = Tensor::dense_zeros(b_g.shape(), sums),
               db_p = Tensor::dense_zeros(b_p.shape(), sums);
  const Tensor zero = weight_ != nullptr ? Tensor() : Tensor::dense_zeros({1}, DType::f64);
  dispatch(u.dtype(), [&]<class T>(Tag<T>) {
    using R = Accum<T>;
    OF_RUN(queue_of(u, gpu::orthogonality_features_scratch(rows, g->rank(), p->rank())),
           orthogonality_features,
           OrthogonalityFeatures<T>{.u_g = u_g.data<T>(),
                                    .ld_g = u_g.pitch(),
                                    .u_p = u_p.data<T>(),
                                    .ld_p = u_p.pitch(),
                                    .b_g = b_g.data<R>(),
                                    .b_p = b_p.data<R>(),
                                    .rows = rows,
                                    .out = slice.rows,
                                    .rank_g = g->rank(),
                                    .rank_p = p->rank(),
                                    .form = form_,
                                    .weight = weight_ != nullptr ? weight_ : zero.data<double>(),
                                    .du_g = extra_g.data<R>(),
                                    .ldd_g = extra_g.pitch(),
                                    .du_p = extra_p.data<R>(),
                                    .ldd_p = extra_p.pitch(),
                                    .db_g = db_g.data<R>(),
                                    .db_p = db_p.data<R>(),
                                    .value = values_ + layers_++});
  });
  if (weight_ == nullptr) return;
  const Tensor du_rows = du.row_range(0, rows);
  if (detach_general_) {
    slice.columns_of(*p, du_rows).add(extra_p.to(du.dtype()));
  } else {
    du_rows.add(extra.to(du.dtype()));
    g->b.add_grad(db_g);
  }
  p->b.add_grad(db_p);
}

double Penalties::features_weight(double factor) const {
  return layers_.empty() ? 0 : factor * config_.features / double(layers());
}

PenaltyValues Penalties::measure() {
  PenaltyValues v;
  if (layers_.empty()) return v;
  const int64_t count = int64_t(layers_.size());
  dispatch_accum(layers_.front().w0.dtype(), [&]<class R>(Tag<R>) {
    const List& all = list<R>(false);
    const Tensor no_gradient = Tensor::dense_zeros({1}, DType::f64);
    const Tensor values = Tensor::dense_zeros({count}, DType::f64);
    for (const std::string kind : kKinds) {
      if (kind == "base_subspace" && config_.base_subspace <= 0) continue;
      // One form, whatever is trained: comparable across runs.
      run_kind<R>(kind, all.entries, count, PenaltyForm::cosine2, no_gradient.data<double>(),
                  values.data<double>());
      v[kind] = mean(values.to_vector());
    }
    const Tensor norms2 = Tensor::dense_zeros({count, 2}, DType::f64);
    OF_RUN(queue_of(norms2), delta_norm2,
           DeltaNorm2<R>{.layers = as<const OrthogonalityLayer<R>>(all.entries),
                         .count = count,
                         .norms2 = norms2.data<double>()});
    for (const int personal : {0, 1}) {
      std::vector<double> norms = norms2.columns(personal, personal + 1).to_vector();
      for (double& n : norms) n = std::sqrt(n);
      v[personal == 0 ? "delta_general" : "delta_personal"] = mean(norms);
    }
  });
  double chance = 0;
  for (const Layer& l : layers_) chance += 1.0 / (double(l.w0.rows()) * double(l.w0.cols()));
  v["base_chance"] = chance / double(count);
  return v;
}

}  // namespace orthofed
