// The block in flight, as the scheduler (simt.cc) shares it with the hardware that works beside the
// threads (mbarrier.cc, bulk_copy.cc, wgmma.cc). Only these files include it.
#pragma once
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/simt/hopper.h"
#include "kernels/simt/simt.h"

#if defined(OF_TSAN_FIBERS)
#include <sanitizer/tsan_interface.h>
#else
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
#endif

namespace orthofed::simt {

enum class State : uint8_t { ready, at_barrier, at_warp, at_warpgroup, at_mbarrier, returned };

struct Thread {
  State state = State::ready;
  uint3 index{};
  const char* waits_for = "";  // name of the operation
  Site site;                   // where it was called
  uint32_t mask = 0;
  Complete complete = nullptr;
  Lane lane;
  int result = 0;       // of a barrier
  unsigned passes = 0;  // barriers passed, for ThreadSanitizer's phases
  unsigned warp_passes = 0;

  struct Copy {
    std::function<void()> run;
    int group;
  };
  std::deque<Copy> copies;  // cp.async: issued and not yet done
  int group = 0;            // that the next copy belongs to

  const uint64_t* mbarrier = nullptr;      // that it waits for
  std::vector<uint64_t*> fresh_mbarriers;  // initialised and not yet fenced
  char issued = 0;                         // ThreadSanitizer's object for its bulk copies

  int product_group = 0;          // that the next wgmma belongs to
  bool registers_fenced = false;  // by wgmma.fence, since the last wait
};

struct Barrier {
  int sum = 0;
  std::vector<unsigned> waiting;
  char phase[2] = {};  // ThreadSanitizer's objects: one alone would order the next pass, too
};

struct Warp {
  char phase[2] = {};
};

// A bulk tensor copy that has been issued.
struct BulkCopy {
  void* to;
  TensorMap map;
  int at[3];  // its box's first element
  uint64_t* mbarrier;
  unsigned thread;  // that issued it
};

struct Warpgroup;  // wgmma.cc

struct Block {
  std::vector<Thread> threads;
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<std::shared_ptr<Warpgroup>> warpgroups;  // made when the first product is issued
  unsigned current = 0;                                // the running thread
  size_t returned = 0;                                 // threads that are done
  std::exception_ptr error;
  const std::function<void()>* body = nullptr;
  void* shared = nullptr;
  size_t shared_bytes = 0;
  int capability = 80;
  bool late = false;
  bool random = false;
  std::mt19937_64 rng;
  char start = 0, end = 0;    // ThreadSanitizer's objects for the launch as a whole
  void* scheduler = nullptr;  // who runs them all, to ThreadSanitizer

  std::deque<BulkCopy> bulk_copies;  // under way
  // Dynamic shared memory as the asynchronous proxy sees it: without what threads have written
  // since the last fence. Only for compute capability 9.0.
  std::vector<std::byte> async_view;
};

extern Block* block;  // of the launch in progress

// While one exists, ThreadSanitizer takes what the calling thread does (allocate, copy) for the
// scheduler's work, because it is the hardware's, which the thread has merely started.
class AsHardware {
#if defined(OF_TSAN_FIBERS)
 public:
  AsHardware() : thread_(__tsan_get_current_fiber()) {
    become(block->scheduler);
  }
  ~AsHardware() {
    become(thread_);
  }
  AsHardware(const AsHardware&) = delete;
  AsHardware& operator=(const AsHardware&) = delete;

 private:
  static void become(void* who) {
    __tsan_switch_to_fiber(who, __tsan_switch_to_fiber_no_sync);
  }
  void* thread_;
#endif
};

Thread& self();
void wait(State state);                      // until somebody sets this thread ready
[[noreturn]] void fail(const std::string&);  // with the table of all threads
bool same(const Site& a, const Site& b);
bool late();  // does the next asynchronous operation take effect as late as it may?

// Dynamic shared memory by its address in the shared window; faults beyond its end.
std::byte* in_async_view(uint32_t address, size_t bytes, const char* name);

std::string describe(const uint64_t* mbarrier);
void check_ready(const uint64_t* mbarrier, const char* name);  // initialised and fenced
void arrive_bytes(uint64_t* mbarrier, size_t bytes);           // that a copy has delivered
void require_hopper(const char* name);

bool finish_one_copy();  // the oldest, or in random order any; false: none is under way

}  // namespace orthofed::simt
