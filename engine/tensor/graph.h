// A training step is captured once and then replayed: what the host does between two kernels
// (allocate, choose a kernel, launch it) is done once, and a GPU gets the whole step in one call.
//
//   StepGraphs graphs(Device::cuda);
//   graphs.run(key, [&] { ... forward, backward, optimiser ... });
//
// The first run of a key is an ordinary one, which finds out how much memory it takes. The second
// is captured: its launches, copies and fills are kept, in order, and then run for the first time;
// every later run of that key repeats them and calls nothing. On device cuda that is a CUDA graph;
// on device simt it is a list of launches, so that capture has tests where there is no GPU.
//
// The arguments are kept as they were, pointers included. So
//   - what changes from step to step is in device memory that lives as long as this, and is written
//     before a run; what is passed by value is the same for all runs of a key, or part of the key;
//   - a captured step reads and waits for nothing on the host: copies between host and device
//     throw, naming the layer (a GPU would copy once, at capture, or copy whatever is at that
//     address by then);
//   - temporary tensors come from a pool that serves nothing else, and all are gone when the step
//     ends, so that one pool is enough for all keys; what is made in a step and outlives it needs
//     LastingMemory (allocator.h);
//   - the host's own side effects happen in the first two runs alone, so they belong outside.
// Whoever watches kernel calls (watch.h, profile.h) sees ordinary runs.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/tensor/allocator.h"
#include "kernels/core/device.h"

namespace orthofed {

class StepGraphs {
 public:
  using Key = std::vector<int64_t>;
  struct Counts {
    int64_t ordinary = 0, captured = 0, replayed = 0;
  };

  explicit StepGraphs(Device device);  // cuda or simt
  ~StepGraphs();

  // Runs the step in one of the three ways on the calling thread's queue of the device. What it
  // throws comes through; the key is then captured another time.
  void run(const Key& key, const std::function<void()>& step);
  // Runs other work, such as evaluation, in the pool's memory, which is idle between two steps; the
  // work then needs no memory of its own. Nothing is captured.
  void lend(const std::function<void()>& work);
  const Counts& counts() const { return counts_; }

 private:
  struct Graph;
  void capture(Graph& graph, const std::function<void()>& step);
  void check_nothing_is_left() const;

  Device device_;
  MemoryPool pool_;
  std::map<Key, std::unique_ptr<Graph>> graphs_;
  Counts counts_;
};

// Throws Error, because a replay would not do `what` again: it has no place in a captured step.
[[noreturn]] void refuse_while_capturing(Device device, const std::string& what);

}  // namespace orthofed
