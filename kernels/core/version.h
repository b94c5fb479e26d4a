// A kernel that teaches is a ladder: numbered versions of one contract, kernels/x/NN_name.cuh, each
// with one idea more than the last, which its first comment line tells. Tests walk the whole
// ladder; x.cu picks the rung that production takes.
#pragma once

namespace orthofed {

// Run: the type of a function with the contract's parameters, the stream last.
template <class Run>
struct Version;

template <class... P>
struct Version<void(P...)> {
  int number = 0;         // 1 is the naive one
  const char* name = "";  // "shared-memory tiles"
  void (*run)(P...) = nullptr;
  // May it run on this device, with operands like these? Null: anywhere, with any.
  bool (*applies)(P...) = nullptr;
};

}  // namespace orthofed
