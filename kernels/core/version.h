// A kernel that teaches is a ladder of numbered versions of one contract, kernels/x/NN_name.cuh.
// Each has one idea more than the last, and its first comment line tells which. Tests run the whole
// ladder; x.cu picks the version that production takes.
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
