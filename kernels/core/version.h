// A kernel that teaches is a ladder of numbered versions of one contract, kernels/x/NN_name.cuh.
// Each has one idea more than the last, and its first comment line tells which. Tests run the whole
// ladder; x.cu picks the version that production takes.
#pragma once
#include <span>

namespace orthofed {

template <class Args, class Stream>
struct Version {
  int number = 0;         // 1 is the naive one
  const char* name = "";  // "shared-memory tiles"
  void (*run)(const Args&, const Stream&) = nullptr;
  // May it run on this device, with operands like these? Null: anywhere, with any.
  bool (*applies)(const Args&, const Stream&) = nullptr;
};

template <class Args, class Stream>
using Ladder = std::span<const Version<Args, Stream>>;

}  // namespace orthofed
