#include "models/penalty.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "kernels/orthogonality/orthogonality.h"

namespace orthofed {
namespace {

PenaltyForm form_of(const PenaltyConfig& c) {
  if (c.form == "cosine2") return PenaltyForm::cosine2;
  if (c.form == "abs_cosine") return PenaltyForm::abs_cosine;
  if (c.form != "raw2")
    throw UserError(
        fmt::format("penalty.form: '{}' is not one of cosine2, abs_cosine, raw2", c.form));
  if (c.features > 0 || c.subspace > 0 || c.subspace_l1 > 0 || c.base_subspace > 0)
    throw UserError("penalty.form: raw2 exists for update and base only");
  return PenaltyForm::raw2;
}

// The value that a kernel writes for one layer.
template <class Kernel>
double value_of(const Kernel& kernel) {
  double value = 0;
  kernel(&value);
  return value;
}

}  // namespace

Penalties::Penalties(Vit& model, const PenaltyConfig& config)
    : config_(config), form_(form_of(config)) {
  for (AdapterSlice* slice : adapter_slices(model)) {
    if (!slice->general.present() || !slice->personal.present()) continue;
    const Linear& linear = *layer_of(model, *slice);
    Layer layer{.slice = slice,
                .w0 = linear.weight.value().row_range(slice->begin, slice->begin + slice->rows)};
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
  if (config.any() && layers_.empty())
    throw UserError("penalty: a penalty needs layers with a general and a personal adapter");
}

// Sum over layers of value(layer tensors, weight) / number of layers. Kernels add to dense buffers;
// these are small, so they are made here and delivered to the parameters afterwards.
template <class F>
double Penalties::over_layers(double gradient_weight, const F& value) const {
  const double share = layers_.empty() ? 0 : 1.0 / double(layers_.size());
  double sum = 0;
  for (const Layer& l : layers_) {
    sum += dispatch_accum(l.w0.dtype(), [&]<class R>(Tag<R>) {
      const Adapter &g = l.slice->general, &p = l.slice->personal;
      const Tensor a_g = g.a.value().contiguous(), b_g = g.b.value().contiguous();
      const Tensor a_p = p.a.value().contiguous(), b_p = p.b.value().contiguous();
      OrthogonalityLayer<R> t;
      t.in = a_g.cols();
      t.out = b_g.rows();
      t.rank_g = a_g.rows();
      t.rank_p = a_p.rows();
      t.a_g = a_g.data<R>();
      t.b_g = b_g.data<R>();
      t.a_p = a_p.data<R>();
      t.b_p = b_p.data<R>();
      t.w0 = l.w0.data<R>();
      t.ld_w0 = l.w0.pitch();
      t.w0_norm2 = l.w0_norm2;
      if (l.v_k.defined()) {
        t.v_k = l.v_k.data<R>();
        t.k = l.v_k.rows();
      }
      if (gradient_weight == 0) return value(t, 0.0);

      const bool general = config_.detach != "general" && g.a.requires_grad();
      const bool personal = p.a.requires_grad();
      Tensor da_g, db_g, da_p, db_p;
      if (general) {
        da_g = Tensor::dense_zeros(a_g.shape(), a_g.dtype());
        db_g = Tensor::dense_zeros(b_g.shape(), b_g.dtype());
        t.da_g = da_g.data<R>();
        t.db_g = db_g.data<R>();
      }
      if (personal) {
        da_p = Tensor::dense_zeros(a_p.shape(), a_p.dtype());
        db_p = Tensor::dense_zeros(b_p.shape(), b_p.dtype());
        t.da_p = da_p.data<R>();
        t.db_p = db_p.data<R>();
      }
      const double v = value(t, gradient_weight * share);
      if (general) {
        g.a.add_grad(da_g);
        g.b.add_grad(db_g);
      }
      if (personal) {
        p.a.add_grad(da_p);
        p.b.add_grad(db_p);
      }
      return v;
    });
  }
  return sum * share;
}

double Penalties::apply(double factor) {
  const auto& c = config_;
  double total = 0;
  if (c.update > 0)
    total +=
        c.update * over_layers(factor * c.update, [&](const auto& t, double w) {
          return value_of([&](double* to) { cpu::orthogonality_update(&t, 1, form_, &w, to); });
        });
  if (c.base > 0)
    total += c.base * over_layers(factor * c.base, [&](const auto& t, double w) {
               return value_of([&](double* to) { cpu::orthogonality_base(&t, 1, form_, &w, to); });
             });
  if (c.subspace > 0)
    total += c.subspace * over_layers(factor * c.subspace, [&](const auto& t, double w) {
               return value_of([&](double* to) { cpu::orthogonality_subspace(&t, 1, &w, to); });
             });
  if (c.subspace_l1 > 0)
    total += c.subspace_l1 * over_layers(factor * c.subspace_l1, [&](const auto& t, double w) {
               return value_of([&](double* to) { cpu::orthogonality_subspace_l1(&t, 1, &w, to); });
             });
  if (c.base_subspace > 0)
    total +=
        c.base_subspace * over_layers(factor * c.base_subspace, [&](const auto& t, double w) {
          return value_of([&](double* to) { cpu::orthogonality_base_subspace(&t, 1, &w, to); });
        });
  return total;
}

FeaturesPenalty Penalties::features(double factor, int64_t valid_rows) const {
  FeaturesPenalty f;
  f.weight = layers_.empty() ? 0 : factor * config_.features / double(layers_.size());
  f.form = form_ == PenaltyForm::raw2 ? PenaltyForm::cosine2 : form_;
  f.detach_general = config_.detach == "general";
  f.rows = valid_rows;
  return f;
}

PenaltyValues Penalties::measure() {
  PenaltyValues v;
  if (layers_.empty()) return v;
  const PenaltyForm form = PenaltyForm::cosine2;  // comparable across runs, whatever is trained
  v["update"] = over_layers(0, [&](const auto& t, double w) {
    return value_of([&](double* to) { cpu::orthogonality_update(&t, 1, form, &w, to); });
  });
  v["base"] = over_layers(0, [&](const auto& t, double w) {
    return value_of([&](double* to) { cpu::orthogonality_base(&t, 1, form, &w, to); });
  });
  v["subspace"] = over_layers(0, [&](const auto& t, double w) {
    return value_of([&](double* to) { cpu::orthogonality_subspace(&t, 1, &w, to); });
  });
  v["subspace_l1"] = over_layers(0, [&](const auto& t, double w) {
    return value_of([&](double* to) { cpu::orthogonality_subspace_l1(&t, 1, &w, to); });
  });
  if (config_.base_subspace > 0)
    v["base_subspace"] = over_layers(0, [&](const auto& t, double w) {
      return value_of([&](double* to) { cpu::orthogonality_base_subspace(&t, 1, &w, to); });
    });
  v["delta_general"] = over_layers(0, [&](const auto& t, double) {
    double norms2[2];
    cpu::delta_norm2(&t, 1, norms2);
    return std::sqrt(norms2[0]);
  });
  v["delta_personal"] = over_layers(0, [&](const auto& t, double) {
    double norms2[2];
    cpu::delta_norm2(&t, 1, norms2);
    return std::sqrt(norms2[1]);
  });
  v["base_chance"] =
      over_layers(0, [&](const auto& t, double) { return 1.0 / (double(t.in) * double(t.out)); });
  return v;
}

}  // namespace orthofed
