// The table of methods (docs/method.md, "Methods"): a row says all that tells one method from
// another. Training, server, configuration and command line ask the row; no other code knows a
// method by name (tests/models/methods/method_test.cc).
//
// A method with a name of its own is one more row in method.cc.
#pragma once
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "engine/tensor/tensor_map.h"

namespace orthofed {

// Which tensors of the general part cross the wire: the factors A and B of its adapter, and the
// head where it is shared (model.head).
struct Exchange {
  bool a = false, b = false, head = false;
  bool operator==(const Exchange&) const = default;
};
inline constexpr Exchange kNothing{};
inline constexpr Exchange kGeneralPart{.a = true, .b = true, .head = true};

// What the server makes of the clients' updates.
enum class ServerRule : uint8_t {
  none,  // nothing: there is no update
  mean,  // their weighted mean (federation/combine/average.h)
};

struct Method {
  const char* name;          // as in method = "..."
  const char* help;          // one line, for `orthofed config` and docs/method.md
  bool general = false;      // trains the adapter (and head) that is averaged
  bool personal = false;     // trains the adapter that stays home
  Exchange up = kNothing;    // what a client sends after its local training
  Exchange down = kNothing;  // what the server broadcasts; a client keeps the rest
  ServerRule server = ServerRule::none;
  bool all_images = false;    // one machine trains on the images of all sites
  bool fine_tunes = false;    // after the last broadcast: train.fine_tune_epochs at home
  double penalty_update = 0;  // penalty.update where no weight is set; 0: no penalty
  int demo = 0;               // its place in the demonstration; 0: only if asked for

  bool federated() const { return server != ServerRule::none; }
  // Only these have a personal rank of its own, penalties, and the two phases of
  // train.alternation = "alternate".
  bool two_adapters() const { return general && personal; }
  // A federation's client has general tensors that no broadcast brings, so that it keeps them.
  bool keeps_of_general() const { return federated() && down != kGeneralPart; }
};

// The rows; the first is the default.
const std::deque<Method>& methods();
std::vector<std::string> method_names();
std::vector<std::string> demo_methods();  // those of the demonstration, in its order

// UserError for a name that is in no row.
const Method& method_named(const std::string& name);

// The row of one machine without a server: all sites' images, or those of one.
const Method& method_alone(bool all_images);

// The row that is like this one apart from its penalty; null where there is none.
const Method* without_penalty(const Method& method);

// Those of the general part's tensors (PEFT's names, models/adapters/lora.h) that are exchanged.
TensorMap exchanged(const TensorMap& general, const Exchange& parts);

// The table of docs/method.md.
std::string methods_markdown();

// One more row, for a program that brings a method of its own; to be called before the first
// configuration is read. The protocol has one schema so far: up == down, else Error.
void add_method(const Method& method);

}  // namespace orthofed
