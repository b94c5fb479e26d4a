#include "engine/tensor/graph.h"

#include <fmt/core.h>

#include <optional>

#include "engine/tensor/device.h"
#include "engine/tensor/watch.h"
#include "kernels/core/cuda_device.h"

namespace orthofed {

struct StepGraphs::Graph {
  Queue queue;  // the thread's, with scratch memory of the graph's own: kernels point into it
  bool ran = false, captured = false;
  simt::Recording recording;
#ifdef OF_HAVE_CUDA
  std::optional<cuda::Graph> cuda;
#endif

  ~Graph() {
    const Scratch& s = scratch_of(queue);
    if (s.data != nullptr) release(s.data, s.bytes, queue.device);
  }
  void launch() const {
#ifdef OF_HAVE_CUDA
    if (queue.device == Device::cuda) return cuda->launch(queue_on(Device::cuda).cuda);
#endif
    for (const auto& work : recording) work();
  }
};

StepGraphs::StepGraphs(Device device) : device_(device), pool_(device) {
  OF_CHECK(device != Device::cpu, "a device whose launches can be kept");
}

StepGraphs::~StepGraphs() = default;

void StepGraphs::run(const Key& key, const std::function<void()>& step) {
  const Queue& threads = queue();
  OF_CHECK(threads.device == device_, "the thread is on the graphs' device");
  if (threads.watch != nullptr) {
    ++counts_.ordinary;
    return step();
  }
  std::unique_ptr<Graph>& entry = graphs_[key];
  if (entry == nullptr) {
    entry = std::make_unique<Graph>();
    entry->queue = threads;
    scratch_of(entry->queue) = {};
  }
  Graph& graph = *entry;
  if (graph.captured) {
    ++counts_.replayed;
    return graph.launch();
  }
  if (graph.ran) {
    capture(graph, step);
    ++counts_.captured;
  } else {
    const FromPool memory(pool_);
    const OnQueue scope(graph.queue);
    step();
    ++counts_.ordinary;
  }
  check_nothing_is_left();
  graph.ran = true;
  if (graph.captured) graph.launch();
}

void StepGraphs::lend(const std::function<void()>& work) {
  {
    const FromPool memory(pool_);
    work();
  }
  check_nothing_is_left();
}

// What is left would be written over by a replay.
void StepGraphs::check_nothing_is_left() const {
  OF_CHECK(pool_.in_use() == 0, fmt::format("{} tensors outlive the step that made them: they need "
                                            "LastingMemory",
                                            pool_.in_use()));
}

void StepGraphs::capture(Graph& graph, const std::function<void()>& step) {
  const FromPool memory(pool_, true);
  if (device_ == Device::simt) {
    graph.recording.clear();
    Queue recording = graph.queue;
    recording.simt.recording = &graph.recording;
    const OnQueue scope(recording);
    step();
  }
#ifdef OF_HAVE_CUDA
  if (device_ == Device::cuda)
    graph.cuda.emplace([&](void* stream) {
      Queue capturing = graph.queue;
      capturing.cuda.handle = stream;
      capturing.cuda.capturing = true;
      const OnQueue scope(capturing);
      step();
    });
#endif
  graph.captured = true;
}

void refuse_while_capturing(Device device, const std::string& what) {
  throw Error(fmt::format(
      "device {} captures a step, which cannot have {}{}{}: a replay would not do it again; "
      "train.graph = \"off\" runs every step by itself",
      name_of(device), what, watched_layer().empty() ? "" : ", in ", watched_layer()));
}

}  // namespace orthofed
