// cuDNN's fused attention behind attention's contract: a peer to compare with, and another way to
// compute it on a GPU (OF_ATTENTION=cudnn in the environment). The library, 9.16 or newer, is
// opened when it is first asked for and never linked; OF_CUDNN names a file or folder to look in
// first.
//
// Built where the toolkit has its header (OF_HAVE_CUDNN). No GPU has run it yet. What has been
// tried without one: told a GPU's properties as text, and given a stand-in for the driver,
// cuDNN 9.19 finds engines for both graphs and compiles them, for compute
// capability 8.0, 8.9, 9.0, 10.0 and 12.0 and head sizes up to 128 (up to 256 forward, and backward
// on 9.0).
//
// Backward is the graph that cudnn-frontend builds where one asks it for a deterministic algorithm
// (on 8.0 to 9.0): dS goes through memory, tokens^2 bf16 an (image, head), so that dQ is a plain
// product of it and not a sum of atomic additions. cuDNN attaches no note on determinism to its
// engines, but what it compiled in that trial has no atomic addition of floating-point numbers, nor
// has forward. The test runs each twice and compares bits.
#pragma once
#include "kernels/attention/attention.h"
#include "kernels/core/device.h"

namespace orthofed::cuda {

// Is there a cuDNN that is new enough? Older releases have no such forward operation, or get
// backward wrong unless tokens is a multiple of 128.
bool cudnn_found();

// Does OF_ATTENTION=cudnn ask for it? Throws UserError for another value, or if it asks and
// cudnn_found() is false.
bool cudnn_asked();

// gpu::attention_forward's and gpu::attention_backward's contracts, of bf16 alone: cuDNN's engines
// multiply on tensor cores. False, and nothing done, where the library is absent, with fewer than 2
// tokens, where a head, a pitch or an address is not a multiple of 16 bytes, or where cuDNN has no
// engine. Errors of what it accepted throw.
bool attention_forward_cudnn(const AttentionForward<bf16>& a, const Stream& stream);
bool attention_backward_cudnn(const AttentionBackward<bf16>& a, const Stream& stream);

}  // namespace orthofed::cuda
