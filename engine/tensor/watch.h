// Two ways to look at every kernel call of a run, for whoever hunts a wrong number:
//
//   shadow    runs each call on the CPU as well, on copies, and stops at the first output that is
//             not what the CPU computes
//   finite    stops at the first call that writes a NaN or an infinity
//
// Both name the kernel, the layer, the sizes it was called with and the element. They see tensors
// of the engine's allocator; calls whose arguments hold pointers (the optimiser's lists) go
// unwatched.
#pragma once
#include <memory>
#include <string>

#include "kernels/core/device.h"

namespace orthofed {

std::unique_ptr<Watch> make_shadow(const Queue& queue);
std::unique_ptr<Watch> make_finite_check(const Queue& queue);

// What the calling thread is computing, for the message: "blocks.3.attn.qkv.weight".
void set_watched_layer(const std::string& name);

}  // namespace orthofed
