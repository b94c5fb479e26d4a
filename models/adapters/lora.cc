#include "models/adapters/lora.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "kernels/core/philox.h"

namespace orthofed {
namespace {

// Where a target sits: its layer in block i, and which third of the fused qkv it is (-1: all rows).
struct Target {
  const char* name;
  const char* layer;
  int third;
  // As an adapter is named: the layer, or the third of it.
  std::string path() const { return third < 0 ? layer : std::string("attn.") + name; }
};
constexpr Target kTargets[] = {
    {"qkv", "attn.qkv", -1},   {"q", "attn.qkv", 0},   {"k", "attn.qkv", 1},  {"v", "attn.qkv", 2},
    {"proj", "attn.proj", -1}, {"fc1", "mlp.fc1", -1}, {"fc2", "mlp.fc2", -1}};

}  // namespace

const char* name_of(AdapterKind kind) {
  return kind == AdapterKind::general ? "general" : "personal";
}

Adapter* adapter_of(AdapterSlice& slice, AdapterKind kind) {
  return slice.find(name_of(kind));
}

const Adapter* adapter_of(const AdapterSlice& slice, AdapterKind kind) {
  return slice.find(name_of(kind));
}

AdapterScale adapter_scale(const LoraConfig& c, AdapterKind kind) {
  const double alpha = c.alpha >= 0 ? c.alpha : 2.0 * double(c.rank);
  if (kind == AdapterKind::general) return {c.rank, alpha};
  const int64_t rank = c.personal_rank >= 0 ? c.personal_rank : c.rank;
  return {rank, c.personal_alpha >= 0 ? c.personal_alpha : alpha * double(rank) / double(c.rank)};
}

void attach_adapter(Vit& model, const std::string& name, AdapterKind kind, int64_t rank,
                    double scale) {
  for (int64_t i = 0; i < model.config.depth; ++i) {
    for (const Target& t : kTargets) {
      if (name != fmt::format("blocks.{}.{}", i, t.path())) continue;
      Linear& layer = *model.find(fmt::format("blocks.{}.{}", i, t.layer));
      const int64_t rows = t.third >= 0 ? layer.out() / 3 : layer.out();
      if (rank <= 0 || rank > std::min(layer.in(), rows))
        throw UserError(fmt::format("lora: rank {} on {} is not in 1 to {}", rank, name,
                                    std::min(layer.in(), rows)));
      const DType dtype = accum(model.compute);
      layer.adapters.add(
          name, t.third >= 0 ? t.third * rows : 0, rows,
          {.name = name_of(kind),
           .a = Var(Tensor::zeros({rank, layer.in()}, dtype), true, name + ".lora_A.weight"),
           .b = Var(Tensor::zeros({rows, rank}, dtype), true, name + ".lora_B.weight"),
           .scale = scale});
      return;
    }
  }
  throw UserError(fmt::format("lora: this model has no layer '{}'", name));
}

void attach_adapters(Vit& model, const LoraConfig& config, AdapterKind kind) {
  std::vector<int64_t> layers = config.layers;
  if (layers.empty())
    for (int64_t i = 0; i < model.config.depth; ++i) layers.push_back(i);
  const AdapterScale scale = adapter_scale(config, kind);
  for (int64_t i : layers) {
    if (i < 0 || i >= model.config.depth)
      throw UserError(fmt::format("lora.layers: {} is not among the model's {} blocks (0 to {})", i,
                                  model.config.depth, model.config.depth - 1));
    for (const std::string& wanted : config.targets) {
      const auto* t = std::find_if(std::begin(kTargets), std::end(kTargets),
                                   [&](const Target& x) { return wanted == x.name; });
      if (t == std::end(kTargets))
        throw UserError(
            fmt::format("lora.targets: '{}' is not one of qkv, q, k, v, proj, fc1, fc2", wanted));
      attach_adapter(model, fmt::format("blocks.{}.{}", i, t->path()), kind, scale.rank,
                     scale.scale());
    }
  }
}

void draw_adapters(Vit& model, const LoraConfig& config, AdapterKind kind, uint64_t seed,
                   const std::string& client) {
  for (AdapterSlice* slice : adapter_slices(model)) {
    const Adapter* adapter = adapter_of(*slice, kind);
    if (adapter == nullptr) continue;
    PhiloxKey key(seed);
    if (kind == AdapterKind::general)
      key.with("general").with(slice->name);
    else
      key.with("personal").with(client).with(slice->name);
    const Philox rng = key;
    const Tensor a = Tensor::empty(adapter->a.shape(), adapter->a.value().dtype(), Device::cpu);
    const double bound = 1 / std::sqrt(double(a.cols()));
    dispatch_accum(a.dtype(), [&]<class R>(Tag<R>) {
      for (int64_t r = 0; r < a.rows(); ++r)
        for (int64_t c = 0; c < a.cols(); ++c) {
          const uint64_t counter = uint64_t(r * a.cols() + c);
          // Rounded to fp32 whatever the compute type, so that f64 checks start at the same point.
          a.row<R>(r)[c] = R(float(config.init == LoraInit::peft
                                       ? bound * (2.0 * uniform01(rng(counter)[0]) - 1.0)
                                       : bound * normal(rng, counter)));
        }
    });
    adapter->a.value().copy_from(a);
    adapter->b.value().fill(0);
  }
}

void orthogonalise_personal(Vit& model) {
  for (AdapterSlice* slice : adapter_slices(model)) {
    const Adapter *general = adapter_of(*slice, AdapterKind::general),
                  *personal = adapter_of(*slice, AdapterKind::personal);
    if (general == nullptr || personal == nullptr) continue;
    const Tensor a_g = general->a.value(), a_p = personal->a.value();
    const int64_t rg = a_g.rows(), rp = a_p.rows(), n = a_g.cols();
    if (rg + rp > n)
      throw UserError(fmt::format("lora.init_orthogonal: ranks {} + {} exceed the {} inputs of {}",
                                  rg, rp, n, slice->name));
    std::vector<double> q = a_g.to_vector(), p = a_p.to_vector();
    auto dot = [n](const double* x, const double* y) {
      double s = 0;
      for (int64_t i = 0; i < n; ++i) s += x[i] * y[i];
      return s;
    };
    // x minus its parts along the first `count` rows of q; twice is enough (Kahan, Parlett).
    auto project_out = [&](double* x, int64_t count) {
      for (int pass = 0; pass < 2; ++pass)
        for (int64_t j = 0; j < count; ++j) {
          const double along = dot(x, &q[size_t(j * n)]);
          for (int64_t i = 0; i < n; ++i) x[i] -= along * q[size_t(j * n + i)];
        }
    };
    for (int64_t r = 0; r < rg; ++r) {
      double* row = &q[size_t(r * n)];
      project_out(row, r);
      const double norm = std::sqrt(dot(row, row));
      OF_CHECK(norm > 0, "the rows of A_g are independent");
      for (int64_t i = 0; i < n; ++i) row[i] /= norm;
    }
    for (int64_t r = 0; r < rp; ++r) project_out(&p[size_t(r * n)], rg);
    a_p.copy_from(Tensor::of(p, {rp, n}));
  }
}

std::vector<Linear*> adapted_layers(Vit& model) {
  std::vector<Linear*> all;
  for (Block& b : model.blocks)
    for (Linear* l : {&b.qkv, &b.proj, &b.fc1, &b.fc2})
      if (!l->adapters.empty()) all.push_back(l);
  return all;
}

std::vector<AdapterSlice*> adapter_slices(Vit& model) {
  std::vector<AdapterSlice*> all;
  for (Linear* l : adapted_layers(model))
    for (AdapterSlice& s : l->adapters.slices()) all.push_back(&s);
  return all;
}

void set_active(Vit& model, AdapterKind kind, bool active) {
  for (AdapterSlice* s : adapter_slices(model))
    if (Adapter* a = adapter_of(*s, kind)) a->active = active;
}

void set_trainable(Vit& model, AdapterKind kind, bool trainable) {
  for (AdapterSlice* s : adapter_slices(model))
    if (const Adapter* a = adapter_of(*s, kind)) a->set_trainable(trainable);
}

TensorMap adapter_tensors(Vit& model, AdapterKind kind) {
  TensorMap t;
  for (AdapterSlice* s : adapter_slices(model)) {
    if (const Adapter* a = adapter_of(*s, kind))
      for (const Var* v : {&a->a, &a->b}) t[v->name()] = v->value().host_copy();
  }
  return t;
}

void load_adapters(Vit& model, AdapterKind kind, const TensorMap& tensors) {
  for (AdapterSlice* s : adapter_slices(model)) {
    const Adapter* a = adapter_of(*s, kind);
    if (a == nullptr) continue;
    for (const Var* v : {&a->a, &a->b}) {
      const auto it = tensors.find(v->name());
      if (it == tensors.end())
        throw UserError(fmt::format("adapter: tensor '{}' is missing", v->name()));
      if (!(it->second.shape() == v->shape()))
        throw UserError(fmt::format("adapter: '{}' has shape {}, this model expects {}", v->name(),
                                    it->second.shape().str(), v->shape().str()));
      v->value().copy_from(it->second);
    }
  }
}

}  // namespace orthofed
