#include "models/training/heads.h"

#include <fmt/core.h>

#include <cmath>

#include "engine/ops/residual.h"
#include "kernels/core/philox.h"

namespace orthofed {

Heads::Heads(const Vit& model, int64_t classes, HeadKind which) {
  const DType dtype = accum(model.compute);
  const auto add = [&](AdapterKind kind, const std::string& prefix) {
    heads_.push_back(
        {kind, Linear(Var(Tensor::zeros({classes, model.config.feature_dim()}, dtype), true,
                          prefix + "head.weight"),
                      Var(Tensor::zeros({classes}, dtype), true, prefix + "head.bias"), dtype)});
  };
  add(which == HeadKind::personal ? AdapterKind::personal : AdapterKind::general, "");
  if (which == HeadKind::both) add(AdapterKind::personal, "personal_");
}

void Heads::draw_first(uint64_t seed) const {
  const Philox rng = PhiloxKey(seed).with("head");
  const Linear& head = heads_.front().layer;
  const Tensor& w = head.weight.value();
  const double bound = 1 / std::sqrt(double(w.cols()));
  std::vector<float> values(size_t(w.size()));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = float(bound * (2.0 * uniform01(rng(i)[0]) - 1.0));
  w.copy_from(Tensor::of(values, w.shape()));
  head.bias.value().fill(0);
}

void Heads::clear_second() const {
  for (size_t i = 1; i < heads_.size(); ++i) {
    heads_[i].layer.weight.value().fill(0);
    heads_[i].layer.bias.value().fill(0);
  }
}

Var Heads::logits(Tape& tape, const Var& features, bool personal) const {
  const Var z = linear(tape, heads_.front().layer, features);  // [B, C]
  if (!personal || heads_.size() == 1) return z;
  return residual(tape, z, linear(tape, heads_.back().layer, features), Var());
}

void Heads::set_trainable(AdapterKind kind, bool on) const {
  for (const Head& h : heads_) {
    if (h.kind != kind) continue;
    h.layer.weight.set_requires_grad(on);
    h.layer.bias.set_requires_grad(on);
  }
}

void Heads::add_to(ParameterGroup& group, AdapterKind kind, double weight_decay) const {
  for (const Head& h : heads_) {
    if (h.kind != kind) continue;
    group.add(h.layer.weight, weight_decay);
    group.add(h.layer.bias, 0);
  }
}

void Heads::put(AdapterKind kind, TensorMap& to) const {
  for (const Head& h : heads_)
    if (h.kind == kind)
      for (const Var* v : {&h.layer.weight, &h.layer.bias}) to[v->name()] = v->value().host_copy();
}

void Heads::take(AdapterKind kind, const TensorMap& from) const {
  for (const Head& h : heads_) {
    if (h.kind != kind) continue;
    for (const Var* v : {&h.layer.weight, &h.layer.bias}) {
      const auto it = from.find(v->name());
      if (it == from.end()) throw UserError(fmt::format("adapter: '{}' is missing", v->name()));
      if (!(it->second.shape() == v->shape()))
        throw UserError(fmt::format("adapter: '{}' has shape {}, {} was expected", v->name(),
                                    it->second.shape().str(), v->shape().str()));
      v->value().copy_from(it->second);
    }
  }
}

}  // namespace orthofed
