// Where the time of a training step goes. A Profile watches the calling thread's kernel calls for a
// few steps and adds up what each kind took, beside what its contract says it costs and what this
// machine can do.
//
// Spans cover what is not a kernel call: copies and waiting for images (Kind::work), and what
// encloses all that: a step, its halves, a layer (Kind::part). Where nobody profiles, a span costs
// one look at a variable of the thread.
//
// Times are the host's; on device simt the emulator's. On device cuda they are the GPU's: events
// mark where calls and spans begin and end in its stream and are read at the end of the step, so
// that nothing waits in between. A call's time then includes the launch if the GPU had nothing else
// to do. NVIDIA's profilers are shown the same spans (NVTX).
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/tensor/ceiling.h"
#include "kernels/core/device.h"

namespace orthofed {

namespace cuda {
class Timeline;
}

class Profile : public Watch {
 public:
  static constexpr int64_t kWarmUp = 3;  // steps before the first that is measured

  enum class Kind : uint8_t { work, part };
  struct Event {
    Kind kind = Kind::work;
    std::string name;            // "gelu_forward", "step", "blocks.3.attn.qkv.weight"
    std::string sizes;           // "1576 768 3072": the call's numbers, in the contract's order
    int64_t begin = 0, end = 0;  // ns, by a steady clock
    int64_t within = -1;         // the event that encloses it; -1: none
    Cost cost;
  };
  // All calls of one name in one kind of layer. The numbers are per step.
  struct Row {
    std::string name, where;
    double calls = 0, seconds = 0;  // seconds without those of what it encloses
    Cost cost;
  };

  // steps: how many to measure.
  Profile(const Queue& queue, const Ceilings& ceilings, int64_t steps);
  ~Profile() override;
  Profile(const Profile&) = delete;

  // A step begins on the calling thread, and the one before it has ended.
  void step();
  // No step follows.
  void finish();

  int64_t steps() const { return measured_; }  // measured so far
  const std::vector<Event>& events() const { return events_; }
  double step_seconds() const;  // the mean over the steps
  std::vector<Row> rows()
      const;  // by time; the last is "between kernels"; together they are a step

  std::string table() const;
  std::string trace_json() const;  // Chrome's trace event format, which Perfetto opens

  int64_t open(Kind kind, std::string name, const Cost& cost = {});
  void close(int64_t event);

  void begin(const char* kernel) override;
  void* pointer(const void* p, DType dtype, bool output) override;
  void type(DType) override {}
  std::span<std::byte> list(const void* p) override;
  void number(int64_t value) override;
  void opaque() override {}
  void run(const Cost& cost) override;
  bool ran() override;
  void end() override {}

 private:
  int64_t now();  // ns; on cuda the number of a mark, until settle()
  void settle();  // the step's marks become ns

  Device device_;
  Ceilings ceilings_;
  int64_t wanted_ = 0, started_ = 0, measured_ = 0;
  int64_t step_event_ = -1, innermost_ = -1;
  int64_t step_began_ = 0;                    // ns, by the host's clock
  std::shared_ptr<cuda::Timeline> timeline_;  // on cuda
  std::string kernel_, sizes_;
  std::vector<std::vector<std::byte>> lists_;
  std::vector<Event> events_;
};

// The profile of the calling thread while it measures a step, else null.
Profile* profiling();

class Span {
 public:
  explicit Span(const char* name, Profile::Kind kind = Profile::Kind::part, const Cost& cost = {})
      : profile_(profiling()) {
    if (profile_ != nullptr) event_ = profile_->open(kind, name, cost);
  }
  Span(const std::string& name, Profile::Kind kind) : Span(name.c_str(), kind) {}
  ~Span() {
    if (profile_ != nullptr && profile_ == profiling()) profile_->close(event_);
  }
  Span(const Span&) = delete;

 private:
  Profile* profile_;
  int64_t event_ = -1;
};

}  // namespace orthofed
