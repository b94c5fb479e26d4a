#include "models/adapters/module_adapter.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <map>

#include "models/adapters/lora.h"

namespace orthofed {
namespace {

constexpr const char* kA = ".lora_A.weight";
constexpr const char* kB = ".lora_B.weight";
constexpr const char* kThirds[] = {"attn.q", "attn.k", "attn.v"};
constexpr const char* kFused = "attn.qkv";

// Where a slice sits: its layer, and which third of the layer's rows it is (-1: all).
struct Place {
  std::string layer;
  int third = -1;
};

Place place_of(const std::string& slice) {
  for (int i = 0; i < 3; ++i)
    if (const std::string end = kThirds[i]; slice.ends_with("." + end))
      return {slice.substr(0, slice.size() - end.size()) + kFused, i};
  return {slice, -1};
}

// One adapter on one slice, in the rows [begin, begin + rows) of its layer.
struct Piece {
  int64_t begin, rows;
  Tensor a, b;
  double scale;
};

void check_fits(const Piece& p, const std::string& slice, const BaseFile& base,
                const std::string& layer) {
  const int64_t in = base.inputs_of(layer);
  if (p.a.rank() != 2 || p.b.rank() != 2 || p.a.cols() != in || p.b.rows() != p.rows ||
      p.a.rows() != p.b.cols())
    throw UserError(fmt::format(
        "adapter: '{}' has A {} and B {}; this base model needs A [r, {}] and B [{}, r]", slice,
        p.a.shape().str(), p.b.shape().str(), in, p.rows));
}

// Every layer's pieces: slices by their rows, in a slice the adapters in the order given.
std::map<std::string, std::vector<Piece>> pieces_of(const BaseFile& base,
                                                    std::span<const AdapterFile> adapters) {
  std::map<std::string, std::vector<Piece>> pieces;
  for (const AdapterFile& file : adapters) {
    if (file.base_sha256 != base.sha256)
      throw UserError(
          fmt::format("{}: is not the base model of this {} adapter (sha256 {:.12}..., it was "
                      "trained on {:.12}...)",
                      base.path, name_of(file.kind), base.sha256, file.base_sha256));
    for (const auto& [name, a] : file.tensors) {
      if (!name.ends_with(kA)) continue;
      const std::string slice = name.substr(0, name.size() - std::string(kA).size());
      const Place place = place_of(slice);
      const std::vector<ModuleRows> modules = base.modules_of(place.layer);
      const int64_t out = modules.back().begin + modules.back().rows;
      const auto b = file.tensors.find(slice + kB);
      if (b == file.tensors.end())
        throw UserError(fmt::format("adapter: '{}{}' is missing", slice, kB));
      const int64_t rows = place.third < 0 ? out : out / 3;
      const Piece piece{std::max(place.third, 0) * rows, rows, a, b->second, file.scale};
      check_fits(piece, slice, base, place.layer);
      pieces[place.layer].push_back(piece);
    }
  }
  for (auto& [layer, list] : pieces)
    std::stable_sort(list.begin(), list.end(),
                     [](const Piece& x, const Piece& y) { return x.begin < y.begin; });
  return pieces;
}

// What of the pieces falls into the rows of one module, stacked. Nothing: A is undefined.
ModuleAdapter stacked(const ModuleRows& module, const std::vector<Piece>& pieces, double scale) {
  const auto first = [&](const Piece& p) { return std::max(p.begin, module.begin); };
  const auto last = [&](const Piece& p) {
    return std::min(p.begin + p.rows, module.begin + module.rows);
  };
  ModuleAdapter m{module.module, {}, {}, scale, module.weight};
  int64_t rank = 0, in = 0;
  for (const Piece& p : pieces)
    if (first(p) < last(p)) {
      rank += p.a.rows();
      in = p.a.cols();
    }
  if (rank == 0) return m;
  const OnDevice host(Device::cpu);
  m.a = Tensor::zeros({rank, in}, DType::f32);
  m.b = Tensor::zeros({module.rows, rank}, DType::f32);
  int64_t column = 0;
  for (const Piece& p : pieces) {
    if (first(p) >= last(p)) continue;
    const int64_t r = p.a.rows();
    m.a.row_range(column, column + r).copy_from(p.a);
    const Tensor b = p.b.to(DType::f32);
    const double ratio = p.scale / scale;
    for (int64_t row = first(p); row < last(p); ++row) {
      const float* from = b.row<float>(row - p.begin);
      float* to = m.b.row<float>(row - module.begin) + column;
      for (int64_t j = 0; j < r; ++j) to[j] = float(double(from[j]) * ratio);
    }
    column += r;
  }
  return m;
}

// Which third of the rows each column of B lives in: all of a column's nonzero rows in one third.
// Empty if a column spreads over several, or all are zero. A zero column goes with the one before.
std::vector<int> thirds_of_columns(const Tensor& b) {
  const int64_t rows = b.rows() / 3;
  std::vector<int> thirds;
  bool any = false;
  for (int64_t c = 0; c < b.cols(); ++c) {
    std::array<bool, 3> in{};
    for (int64_t r = 0; r < b.rows(); ++r) in[size_t(r / rows)] |= b.row<float>(r)[c] != 0;
    const auto count = std::count(in.begin(), in.end(), true);
    if (count > 1) return {};
    any |= count == 1;
    thirds.push_back(count == 1       ? int(std::find(in.begin(), in.end(), true) - in.begin())
                     : thirds.empty() ? 0
                                      : thirds.back());
  }
  return any ? thirds : std::vector<int>{};
}

// Some of a stacked adapter's columns, and some of its rows.
std::pair<Tensor, Tensor> cut(const Tensor& a, const Tensor& b, const std::vector<int64_t>& columns,
                              int64_t begin, int64_t rows) {
  const OnDevice host(Device::cpu);
  const Tensor part_a = Tensor::zeros({int64_t(columns.size()), a.cols()}, DType::f32);
  const Tensor part_b = Tensor::zeros({rows, int64_t(columns.size())}, DType::f32);
  for (size_t j = 0; j < columns.size(); ++j) {
    std::copy_n(a.row<float>(columns[j]), a.cols(), part_a.row<float>(int64_t(j)));
    for (int64_t r = 0; r < rows; ++r)
      part_b.row<float>(r)[j] = b.row<float>(begin + r)[columns[j]];
  }
  return {part_a, part_b};
}

}  // namespace

std::vector<ModuleAdapter> module_adapters(const BaseFile& base,
                                           std::span<const AdapterFile> adapters,
                                           ModuleNames names) {
  OF_CHECK(!adapters.empty(), "at least one adapter");
  const auto pieces = pieces_of(base, adapters);
  std::vector<ModuleAdapter> all;
  for (const std::string& layer : base.layers()) {
    const auto found = pieces.find(layer);
    if (found == pieces.end()) continue;
    for (const ModuleRows& module : base.modules_of(layer, names))
      if (ModuleAdapter m = stacked(module, found->second, adapters[0].scale); m.a.defined())
        all.push_back(std::move(m));
  }
  if (all.empty()) throw UserError("adapter: it adapts no layer of this base model");
  return all;
}

SliceAdapters slice_adapters(const BaseFile& base, std::span<const ModuleAdapter> modules) {
  OF_CHECK(!modules.empty(), "at least one module");
  // Each layer's modules, as pieces with rows of their own.
  const auto known = base.known_modules();
  SliceAdapters out;
  out.scale = modules[0].scale;
  std::map<std::string, std::vector<Piece>> pieces;
  for (const ModuleAdapter& m : modules) {
    const auto found = known.find(m.module);
    if (found == known.end())
      throw UserError(
          fmt::format("adapts '{}', which is not an attention or MLP layer of {}; train without it",
                      m.module, base.path));
    const auto& [layer, rows] = found->second;
    const Piece piece{rows.begin, rows.rows, m.a.to(DType::f32), m.b.to(DType::f32), m.scale};
    check_fits(piece, m.module, base, layer);
    pieces[layer].push_back(piece);
  }
  const auto put = [&](const std::string& slice, const Tensor& a, const Tensor& b) {
    out.tensors[slice + kA] = a;
    out.tensors[slice + kB] = b;
  };
  for (const auto& [layer, list] : pieces) {
    const std::vector<ModuleRows> parts = base.modules_of(layer);
    const int64_t rows = parts.back().begin + parts.back().rows;
    const ModuleAdapter whole = stacked({layer, "", 0, rows}, list, out.scale);
    const std::vector<int> thirds =
        layer.ends_with(kFused) ? thirds_of_columns(whole.b) : std::vector<int>{};
    if (thirds.empty()) {
      put(layer, whole.a, whole.b);
      continue;
    }
    for (int third = 0; third < 3; ++third) {
      std::vector<int64_t> columns;
      for (size_t c = 0; c < thirds.size(); ++c)
        if (thirds[c] == third) columns.push_back(int64_t(c));
      if (columns.empty()) continue;
      const auto [a, b] = cut(whole.a, whole.b, columns, third * rows / 3, rows / 3);
      put(layer.substr(0, layer.size() - std::string(kFused).size()) + kThirds[third], a, b);
    }
  }
  return out;
}

std::optional<HeadTensors> head_of(std::span<const AdapterFile> adapters) {
  const OnDevice host(Device::cpu);
  std::optional<HeadTensors> head;
  for (const char* prefix : {"", "personal_"})
    for (const AdapterFile& file : adapters) {
      const auto weight = file.tensors.find(std::string(prefix) + "head.weight");
      const auto bias = file.tensors.find(std::string(prefix) + "head.bias");
      if (weight == file.tensors.end() || bias == file.tensors.end()) continue;
      const HeadTensors next{weight->second.to(DType::f32).clone(),
                             bias->second.to(DType::f32).clone()};
      if (*prefix == '\0' || !head) {
        head = next;
        continue;
      }
      if (!(head->weight.shape() == next.weight.shape() && head->bias.shape() == next.bias.shape()))
        throw UserError(fmt::format("the heads of the two adapters differ: {} and {}",
                                    head->weight.shape().str(), next.weight.shape().str()));
      head->weight.add(next.weight);
      head->bias.add(next.bias);
    }
  return head;
}

}  // namespace orthofed
