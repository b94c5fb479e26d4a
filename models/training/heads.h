// The classification heads of one site: linear layers on the pooled features.
//
//   shared    one head, which the server averages
//   personal  one head, which stays at the site
//   both      a shared and a personal one, whose logits are added
#pragma once
#include <string>
#include <vector>

#include "engine/optim/optimizer.h"
#include "models/adapters/lora.h"

namespace orthofed {

class Heads {
 public:
  // Of zeros, in the accumulation type of the model and on the thread's device. which: as above.
  Heads(const Vit& model, int64_t classes, HeadKind which);

  // W ~ U(+-1/sqrt(D)), b = 0 of the first head, from the seed alone: every site starts from one
  // head, also where it is never sent.
  void draw_first(uint64_t seed) const;
  // Zeros, for the head that is added to the first one.
  void clear_second() const;

  // features [B, D] -> [B, C]. personal false: without the head that is added to a shared one.
  Var logits(Tape& tape, const Var& features, bool personal) const;
  void set_trainable(AdapterKind kind, bool on) const;
  // Weights decay, biases do not.
  void add_to(ParameterGroup& group, AdapterKind kind, double weight_decay) const;

  // "head.weight", "head.bias", "personal_head.weight" ... of the heads of one kind, as copies.
  void put(AdapterKind kind, TensorMap& to) const;
  // Into the heads' own buffers. Throws UserError where a tensor is missing or has another shape.
  void take(AdapterKind kind, const TensorMap& from) const;

 private:
  struct Head {
    AdapterKind kind;  // general: averaged
    Linear layer;      // [C, D]
  };
  std::vector<Head> heads_;
};

}  // namespace orthofed
