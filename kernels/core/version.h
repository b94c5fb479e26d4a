// A kernel that teaches is a ladder: numbered versions of one contract, kernels/x/NN_name.cuh, each
// with one idea more than the last. Tests and benchmarks walk the whole ladder; x.cu picks the rung
// that production takes.
#pragma once

namespace orthofed {

// Run: the type of a function with the contract's parameters, the stream last.
template <class Run>
struct Version {
  int number = 0;         // 1 is the naive one
  const char* name = "";  // "shared-memory tiles"
  const char* idea = "";  // what changed, and why it is faster, in one line
  int capability = 80;    // compute capability that it needs; 90 means 9.0 exactly (sm_90a)
  Run* run = nullptr;
};

}  // namespace orthofed
