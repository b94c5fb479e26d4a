// The scheduler. It runs every thread of a block to its next rendezvous, in the order that the
// schedule asks for, until all have returned; a pass in which nobody moves is a deadlock.
//
// ThreadSanitizer does not see this file: its writes to the threads' indices and to shared memory
// are the hardware's work, not a thread's.
#include "kernels/simt/simt.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <utility>

#include "kernels/simt/block.h"
#include "kernels/simt/fiber.h"
#include "kernels/simt/memory.h"

extern "C" {
extern std::byte __start_of_shared[] __attribute__((weak));
extern std::byte __stop_of_shared[] __attribute__((weak));
extern std::byte __data_start[], _end[];  // the program's static storage
}

namespace orthofed::simt {

Block* block = nullptr;

Thread& self() {
  return block->threads[block->current];
}

bool same(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

bool late() {
  return block->random ? (block->rng() & 1) != 0 : block->late;
}

namespace {

std::string place(const Site& site) {
  return std::string(site.file_name()) + ":" + std::to_string(site.line()) + ":" +
         std::to_string(site.column());
}

std::string status(const Thread& t) {
  switch (t.state) {
    case State::returned:
      return "has returned";
    case State::ready:
      return "is running";
    default:
      return std::string("waits in ") + t.waits_for + " at " + place(t.site) +
             (t.state == State::at_mbarrier ? describe(t.mbarrier) : "");
  }
}

// One line for every run of threads that are in the same place.
std::string table() {
  std::string text;
  const auto& threads = block->threads;
  for (size_t first = 0; first < threads.size();) {
    size_t last = first;
    while (last + 1 < threads.size() && status(threads[last + 1]) == status(threads[first])) ++last;
    text += "\n  thread" + (first == last
                                ? " " + std::to_string(first)
                                : "s " + std::to_string(first) + " to " + std::to_string(last));
    text += ": " + status(threads[first]);
    first = last + 1;
  }
  return text;
}

}  // namespace

void fail(const std::string& what) {
  throw Fault("block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
              std::to_string(blockIdx.z) + "): " + what + table());
}

void wait(State state) {
  Thread& t = self();
  t.state = state;
  __tsan_release(&block->end);  // should the launch end in a fault, this was the thread's end
  Fiber::suspend();
}

namespace {

void thread_main(void* argument) {
  __tsan_acquire(&block->start);
  try {
    (*block->body)();
  } catch (...) {
    if (!block->error) block->error = std::current_exception();
  }
  static_cast<Thread*>(argument)->state = State::returned;
  __tsan_release(&block->end);
}

// Never freed: a stack costs nothing while it is not touched, and the next launch wants it again.
std::vector<std::unique_ptr<Fiber>>& fibers() {
  static auto* pool = new std::vector<std::unique_ptr<Fiber>>;
  return *pool;
}

// NaN in every floating-point type here, so that memory that nobody wrote spoils a result. Writes
// the red zones between arrays as well, which nobody minds.
__attribute__((no_sanitize("address"))) void spoil(void* memory, size_t bytes) {
  auto* p = static_cast<volatile std::byte*>(memory);
  for (size_t i = 0; i < bytes; ++i) p[i] = std::byte{0xff};
}
void spoil_static_shared() {
  if (__start_of_shared != nullptr)
    spoil(__start_of_shared, size_t(__stop_of_shared - __start_of_shared));
}

void run_block(std::vector<unsigned>& order) {
  auto& threads = block->threads;
  for (unsigned i = 0; i < threads.size(); ++i) {
    Thread& t = threads[i];
    const uint3 index = t.index;
    t = Thread{};
    t.index = index;
    fibers()[i]->prepare(&thread_main, &t);
  }
  block->barrier.sum = 0;
  block->barrier.waiting.clear();
  block->returned = 0;
  block->warpgroups.clear();
  block->bulk_copies.clear();
  if (block->capability >= 90) block->async_view.assign(block->shared_bytes, std::byte{0xff});
  __tsan_release(&block->start);
  while (block->returned < threads.size()) {
    if (block->random) std::shuffle(order.begin(), order.end(), block->rng);
    bool moved = false;
    for (const unsigned i : order) {
      Thread& t = threads[i];
      if (t.state != State::ready) continue;
      moved = true;
      block->current = i;
      threadIdx = t.index;
      fibers()[i]->resume();
      if (block->error) std::rethrow_exception(block->error);
      if (t.state == State::returned) ++block->returned;
    }
    // Copies as late as they may: when nobody can go on without them, or at random.
    if (block->random && block->rng() % 2 == 0) moved |= finish_one_copy();
    if (!moved && !finish_one_copy())
      fail("the block hangs: not everybody who is waited for arrives");
  }
  if (!block->bulk_copies.empty()) fail("all threads have returned while a bulk copy is under way");
  __tsan_acquire(&block->end);
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

}  // namespace

void run(Size grid, Size shape, size_t shared_bytes, const Stream& stream,
         const std::function<void()>& body) {
  static std::mutex mutex;  // threadIdx, static __shared__ and the fibers exist once
  std::lock_guard lock(mutex);
  const OpenMemory open;
  const uint64_t threads = uint64_t{shape.x} * shape.y * shape.z;
  if (threads == 0 || threads > kMaxThreads || shape.z > 64)
    throw Fault("a block of " + std::to_string(threads) + " threads: devices run 1 to 1024");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    throw Fault("a grid beyond a device's limits (2^31 - 1, 65535, 65535)");
  if (shared_bytes > kMaxSharedBytes)
    throw Fault(std::to_string(shared_bytes) + " bytes of shared memory: devices have " +
                std::to_string(kMaxSharedBytes));
  if (uint64_t{grid.x} * grid.y * grid.z == 0) return;

  Block here;
  here.threads.resize(threads);
  here.warps.resize((threads + 31) / 32);
  here.body = &body;
  here.random = stream.schedule == Schedule::random;
  here.late = stream.schedule == Schedule::reverse;
  here.rng.seed(stream.seed);
  here.barrier.waiting.reserve(threads);  // no thread allocates
  while (fibers().size() < threads) fibers().push_back(std::make_unique<Fiber>());
  std::vector<unsigned> order(threads);
  for (unsigned i = 0; i < threads; ++i) {
    here.threads[i].index = {i % shape.x, i / shape.x % shape.y, i / (shape.x * shape.y)};
    order[i] = stream.schedule == Schedule::reverse ? unsigned(threads) - 1 - i : i;
  }
  // Exactly as many bytes as the launch asked for, so that AddressSanitizer sees one too many.
  std::unique_ptr<void, Free> shared;
  if (shared_bytes > 0) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 1024, shared_bytes) != 0) throw Error("no memory for a block");
    shared.reset(memory);
  }
  here.shared = shared.get();
  here.shared_bytes = shared_bytes;
  here.capability = stream.capability;
  blockDim = {shape.x, shape.y, shape.z};
  gridDim = {grid.x, grid.y, grid.z};

  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  std::vector<uint64_t> block_order;
  if (here.random) {
    block_order.resize(blocks);
    std::iota(block_order.begin(), block_order.end(), uint64_t{0});
    std::shuffle(block_order.begin(), block_order.end(), here.rng);
  }
#if defined(OF_TSAN_FIBERS)
  here.scheduler = __tsan_get_current_fiber();
#endif
  block = &here;
  struct Leave {
    ~Leave() {
      __tsan_acquire(&block->end);
      block = nullptr;
    }
  } leave;
  for (uint64_t n = 0; n < blocks; ++n) {
    const uint64_t b = here.random                            ? block_order[n]
                       : stream.schedule == Schedule::reverse ? blocks - 1 - n
                                                              : n;
    blockIdx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y),
                unsigned(b / (uint64_t{grid.x} * grid.y))};
    if (shared_bytes > 0) spoil(here.shared, shared_bytes);
    // Static arrays of all kernels lie in one section: filling it before each of thousands of
    // blocks would take longer than the blocks, and the first few tell.
    if (n < 4) spoil_static_shared();
    run_block(order);
  }
}

void launch(Size grid, Size shape, size_t shared_bytes, const Stream& stream,
            std::function<void()> body) {
  if (stream.recording == nullptr) return run(grid, shape, shared_bytes, stream, body);
  Stream later = stream;
  later.recording = nullptr;
  stream.recording->push_back(
      [=, body = std::move(body)] { run(grid, shape, shared_bytes, later, body); });
}

void* dynamic_shared() {
  if (block->shared == nullptr) fail("dynamic shared memory, but the launch asked for none");
  return block->shared;
}

unsigned lane_id() {
  return block->current % 32;
}

void check_shared(const void* address, size_t bytes, const char* name) {
  const auto* p = static_cast<const std::byte*>(address);
  const auto* dynamic = static_cast<const std::byte*>(block->shared);
  const bool in_dynamic = p >= dynamic && p + bytes <= dynamic + block->shared_bytes;
  const bool in_static = p >= __data_start && p + bytes <= _end;
  if (!in_dynamic && !in_static) fault(std::string(name) + ": the address is not in shared memory");
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    fault(std::string(name) + ": the address is not a multiple of " + std::to_string(bytes));
}

void copy_async(std::function<void()> copy) {
  if (!late()) return copy();
  self().copies.push_back({std::move(copy), self().group});
}

void commit_async() {
  ++self().group;
}

void wait_async(int pending) {
  Thread& t = self();
  while (!t.copies.empty() && t.copies.front().group < t.group - pending) {
    t.copies.front().run();
    t.copies.pop_front();
  }
}

void fault(const std::string& what) {
  fail("thread " + std::to_string(block->current) + ": " + what);
}

int barrier(int value, const Site& site) {
  Thread& t = self();
  Barrier& b = block->barrier;
  t.waits_for = "__syncthreads";
  t.site = site;
  t.state = State::at_barrier;
  // All threads of the block call it in one place, and nobody is gone. Whoever waits already agrees
  // with the first of them.
  if (!b.waiting.empty() && !same(block->threads[b.waiting.front()].site, site))
    fail("threads meet in different barriers");
  if (block->returned > 0) fail("a barrier of the whole block, but a thread has returned");
  b.sum += value;
  char* const phase = &b.phase[t.passes++ % 2];
  __tsan_release(phase);
  b.waiting.push_back(block->current);
  if (b.waiting.size() < block->threads.size()) {
    wait(State::at_barrier);
  } else {
    for (const unsigned other : b.waiting) {
      block->threads[other].result = b.sum;
      block->threads[other].state = State::ready;
    }
    b.sum = 0;
    b.waiting.clear();
  }
  __tsan_acquire(phase);
  return t.result;
}

void rendezvous(const char* name, uint32_t mask, Complete complete, const Lane& mine,
                const Site& site) {
  Thread& t = self();
  const unsigned lane = block->current % 32, base = block->current - lane;
  t.waits_for = name;
  t.site = site;
  t.mask = mask;
  t.complete = complete;
  t.lane = mine;
  if (!(mask >> lane & 1))
    fault(std::string(name) + " with a mask that does not name its own lane");
  // Lanes beyond the end of a partial last warp do not exist; a full mask may name them.
  const unsigned lanes = std::min(32u, unsigned(block->threads.size()) - base);
  const uint32_t live = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
  const uint32_t wanted = mask & live;
  if ((mask & ~live) != 0 && mask != 0xffffffffu)
    fault(std::string(name) + " with a mask that names a lane beyond the block");
  Lane all[32];
  bool complete_now = true;
  for (unsigned l = 0; l < lanes; ++l) {
    if (!(wanted >> l & 1) || l == lane) continue;
    const Thread& other = block->threads[base + l];
    if (other.state == State::returned) {
      t.state = State::at_warp;
      fail(std::string(name) + ": the mask names lane " + std::to_string(l) +
           ", which has returned");
    }
    if (other.state != State::at_warp) {
      complete_now = false;
      continue;
    }
    if (other.complete != complete || other.mask != mask || !same(other.site, site)) {
      t.state = State::at_warp;
      fail(std::string(name) + ": lanes of one mask meet in different operations");
    }
    all[l] = other.lane;
  }
  if (!complete_now) return wait(State::at_warp);
  all[lane] = t.lane;
  if (complete != nullptr) complete(all, wanted);
  for (unsigned l = 0; l < lanes; ++l)
    if (wanted >> l & 1) block->threads[base + l].state = State::ready;
}

void sync_warp(uint32_t mask, const Site& site) {
  Thread& t = self();
  Warp& warp = block->warps[block->current / 32];
  __tsan_release(&warp.phase[t.warp_passes % 2]);
  rendezvous("__syncwarp", mask, nullptr, {}, site);
  __tsan_acquire(&warp.phase[t.warp_passes++ % 2]);
}

}  // namespace orthofed::simt
