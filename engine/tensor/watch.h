// There are two ways to check every kernel call of a run, for finding where a number goes wrong:
//
//   shadow    runs each call on the CPU as well, on copies, and stops at the first output that is
//             not what the CPU computes
//   finite    stops at the first call that writes a NaN or an infinity
//
// Both name the kernel, the layer, the sizes of the call and the element. They see everything that
// goes through OF_RUN in tensors of the engine's allocator, also what lists point to (the
// optimiser's, the penalties', a batch's images). They do not see copies and zeroing, which no
// kernel of ours does.
#pragma once
#include <memory>
#include <string>

#include "kernels/core/device.h"

namespace orthofed {

// All kernel calls of this process are checked that way, of threads that have not computed yet. The
// environment may ask for it as well: OF_SHADOW=cpu, OF_CHECK_FINITE=1.
void ask_for_shadow();
void ask_for_finite_check();
bool shadow_asked();
bool finite_check_asked();

std::unique_ptr<Watch> make_shadow(const Queue& queue);
std::unique_ptr<Watch> make_finite_check(const Queue& queue);

// From here on `watch` sees every kernel call of the calling thread, in place of the watch before;
// with null nobody does.
void watch_calls(Watch* watch);

// The layer that the calling thread is computing, for messages: "blocks.3.attn.qkv.weight".
void set_watched_layer(const std::string& name);
const std::string& watched_layer();

}  // namespace orthofed
