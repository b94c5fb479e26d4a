// Which layers carry adapters, how they start, and how they are saved.
//
// Names are PEFT's: "blocks.0.attn.qkv.lora_A.weight" [r, in] and ".lora_B.weight" [out, r]; the
// separate targets q, k, v are slices of the fused weight: "blocks.0.attn.q.lora_A.weight".
#pragma once
#include <string>

#include "models/config/config.h"
#include "models/vit/vit.h"

namespace orthofed {

enum class AdapterKind { general, personal };
const char* name_of(AdapterKind kind);  // also the adapter's in its slices

Adapter* adapter_of(AdapterSlice& slice, AdapterKind kind);  // null if there is none
const Adapter* adapter_of(const AdapterSlice& slice, AdapterKind kind);

// Puts adapters on the configured targets and layers: scale alpha / rank, A and B zero, trainable.
// Throws UserError for a target or layer that the model does not have.
void attach_adapters(Vit& model, const LoraConfig& config, AdapterKind kind);

// One adapter on one slice, by its name: "blocks.3.attn.q". Throws UserError if there is none.
void attach_adapter(Vit& model, const std::string& slice, AdapterKind kind, int64_t rank,
                    double scale);

// A ~ N(0, 1/in) (init "normal") or U(+-1/sqrt(in)) ("peft"), B = 0. Keys: (seed, "general", layer)
// and (seed, "personal", client, layer), so a draw depends on nothing else.
void draw_adapters(Vit& model, const LoraConfig& config, AdapterKind kind, uint64_t seed,
                   const std::string& client);

// A_p -= (A_p Q) Q^T with Q an orthonormal basis of A_g's rows. Needs r_g + r_p <= in.
void orthogonalise_personal(Vit& model);

// Every layer that has adapters, and all their slices, in the model's order.
std::vector<Linear*> adapted_layers(Vit& model);
std::vector<AdapterSlice*> adapter_slices(Vit& model);

// To be followed by Linear::refresh_adapters() before the model computes.
void set_active(Vit& model, AdapterKind kind, bool active);
void set_trainable(Vit& model, AdapterKind kind, bool trainable);

TensorMap adapter_tensors(Vit& model, AdapterKind kind);  // copies
// Copies into the adapters' own buffers (Linear::refresh_adapters() is the caller's); every name and shape must match. Throws UserError.
void load_adapters(Vit& model, AdapterKind kind, const TensorMap& tensors);

// Rank and alpha with their defaults filled in.
struct AdapterScale {
  int64_t rank;
  double alpha;
  double scale() const { return alpha / double(rank); }
};
AdapterScale adapter_scale(const LoraConfig& config, AdapterKind kind);

}  // namespace orthofed
