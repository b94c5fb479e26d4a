// The orthogonality penalties of a whole model: the mean over adapted layers of each kind
// (kernels/orthogonality has the formulas), added to the gradients after the task's backward.
//
// They need no tape: the gradient is known in closed form and reaches only A and B. `features` is
// the exception: its value lives in the activations, so it is computed where backward passes each
// slice (FeaturesPenalty).
#pragma once
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "kernels/orthogonality/orthogonality.h"
#include "models/adapters/lora.h"

namespace orthofed {

// Name -> value, as metrics.jsonl logs them: each kind, "delta_general" and "delta_personal" (mean
// |DeltaW|_F), and "base_chance" (mean of 1 / (out in), what random directions give for `base`).
using PenaltyValues = std::map<std::string, double>;

// The `features` term of one backward pass over the first `rows` tokens (the rest is padding), for
// slices with both adapters. Its numbers stay on the model's device.
class FeaturesPenalty : public SliceObserver {
 public:
  // weight: of one layer's term; null: values only. values [layers with both adapters], in the
  // order of backward. detach_general: the gradient reaches the personal adapter alone.
  FeaturesPenalty(PenaltyForm form, bool detach_general, int64_t rows, const double* weight,
                  double* values)
      : form_(form),
        detach_general_(detach_general),
        rows_(rows),
        weight_(weight),
        values_(values) {}

  void backward(const AdapterSlice& slice, const Tensor& u, const Tensor& du) override;
  bool adds_to_du() const override { return weight_ != nullptr; }
  int64_t layers() const { return layers_; }  // values written so far

 private:
  PenaltyForm form_;
  bool detach_general_;
  int64_t rows_;
  const double* weight_;
  double* values_;
  int64_t layers_ = 0;
};

class Penalties {
 public:
  // Throws UserError for a form that a weighted kind does not have.
  Penalties(Vit& model, const PenaltyConfig& config);

  int64_t layers() const { return int64_t(layers_.size()); }  // those with both adapters
  int64_t kinds() const { return int64_t(kinds_.size()); }    // with a weight, without `features`

  // Adds weights[k] * gradient, summed over the layers, of each of those kinds to the adapters'
  // gradients, and leaves the values [kinds, layers]. Both live on the model's device.
  void apply(const double* weights, double* values);
  // The weights [kinds] that make it the gradient of factor * sum of lambda * L.
  std::vector<double> weights(double factor) const;
  // That sum without the factor, from values [kinds, layers] in host memory.
  double sum(const double* values) const;

  // The features term for one backward, which adds a gradient if it has a lambda.
  FeaturesPenalty features(int64_t valid_rows, const double* weight, double* values) const;
  // A layer's weight that makes it the gradient of factor * lambda * L.
  double features_weight(double factor) const;
  double features_lambda() const { return config_.features; }

  // Every kind but `features`, weighted or not, without gradients; nothing of adapters whose rank is
  // above kMaxPenaltyRank. base_subspace only if weighted:
  // it needs singular vectors of every weight.
  PenaltyValues measure();

 private:
  struct Layer {
    const Adapter *general, *personal;
    Tensor w0;  // [out, in], the slice of the frozen weight
    double w0_norm2 = 0;
    Tensor v_k = {};  // [k, in], if base_subspace is weighted
  };
  // What the kernels read: one entry a layer, so that a whole model is one call a kind. It points
  // to dense tensors: copies of adapters that are not, and gradients that every kind adds to.
  struct List {
    Tensor entries;  // OrthogonalityLayer [layers], as bytes
    struct Copy {
      Tensor from, dense;
    };
    std::vector<Copy> copies;
    struct Gradient {
      const Adapter* adapter;
      Tensor a, b;
    };
    std::vector<Gradient> gradients;
  };
  template <class R>
  List make_list(bool general, bool personal) const;
  // Ready for a call: copies are up to date, gradients zero.
  template <class R>
  const List& list(bool with_gradients);
  double lambda(const std::string& kind) const;

  PenaltyConfig config_;
  PenaltyForm form_;
  std::vector<std::string> kinds_;
  std::vector<Layer> layers_;
  std::map<std::pair<bool, bool>, List> lists_;  // by whose gradient is wanted
};

}  // namespace orthofed
