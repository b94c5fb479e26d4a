// mbarrier objects: what the 64 bits hold that PTX calls opaque, and who waits for them.
#include "kernels/simt/block.h"

namespace orthofed::simt {
namespace {

enum Marker : uint64_t { initialised = 1, fenced = 2 };  // memory that nobody wrote has 0 or 3

struct Word {
  uint64_t marker : 2;
  uint64_t phase : 1;      // parity of the phase in progress
  uint64_t expected : 20;  // arrivals a phase
  uint64_t pending : 20;   // arrivals that this phase still waits for
  int64_t bytes : 21;  // announced and not yet there; copies may be faster than the announcement
};
static_assert(sizeof(Word) == 8);
constexpr uint32_t kMaxArrivals = (1 << 20) - 1;

Word load(const uint64_t* mbarrier, const char* name) {
  check_shared(mbarrier, sizeof *mbarrier, name);
  const auto word = std::bit_cast<Word>(*mbarrier);
  if (word.marker != initialised && word.marker != fenced)
    fail(std::string(name) + ": nobody has initialised the mbarrier");
  return word;
}

char* phase_object(const uint64_t* mbarrier, uint32_t parity) {  // ThreadSanitizer's
  return const_cast<char*>(reinterpret_cast<const char*>(mbarrier)) + parity;
}

// Stores the word; if that was the phase's last event, the next one begins.
void settle(uint64_t* mbarrier, Word word) {
  if (word.pending == 0 && word.bytes < 0)
    fail("mbarrier: " + std::to_string(-word.bytes) + " bytes more arrive than were announced");
  if (word.pending == 0 && word.bytes == 0) {
    word.phase ^= 1;
    word.pending = word.expected;
    for (Thread& t : block->threads)
      if (t.state == State::at_mbarrier && t.mbarrier == mbarrier) t.state = State::ready;
  }
  *mbarrier = std::bit_cast<uint64_t>(word);
}

}  // namespace

void mbarrier_init(uint64_t* mbarrier, uint32_t arrivals) {
  require_hopper("mbarrier_init");
  check_shared(mbarrier, sizeof *mbarrier, "mbarrier_init");
  if (arrivals < 1 || arrivals > kMaxArrivals) fault("an mbarrier expects 1 to 2^20 - 1 arrivals");
  Word word{};
  word.marker = initialised;
  word.expected = word.pending = arrivals;
  *mbarrier = std::bit_cast<uint64_t>(word);
  self().fresh_mbarriers.push_back(mbarrier);
}

void mbarrier_inval(uint64_t* mbarrier) {
  load(mbarrier, "mbarrier_inval");
  *mbarrier = 0;
}

void mbarrier_fence() {
  for (uint64_t* mbarrier : self().fresh_mbarriers) {
    Word word = load(mbarrier, "mbarrier_fence");
    word.marker = fenced;
    *mbarrier = std::bit_cast<uint64_t>(word);
  }
  self().fresh_mbarriers.clear();
}

void mbarrier_arrive(uint64_t* mbarrier, uint32_t bytes) {
  Word word = load(mbarrier, "mbarrier_arrive");
  if (word.pending == 0) fault("mbarrier_arrive: more arrivals than the mbarrier expects");
  if (bytes > kMaxArrivals) fault("mbarrier_arrive: announces 2^20 bytes or more");
  __tsan_release(phase_object(mbarrier, word.phase));
  word.bytes += bytes;
  --word.pending;
  settle(mbarrier, word);
}

// The test of PTX's try_wait.parity: the phase of this parity is over if another is in progress.
void mbarrier_wait(uint64_t* mbarrier, uint32_t parity, const Site& site) {
  Thread& t = self();
  t.waits_for = "mbarrier_wait";
  t.site = site;
  if (load(mbarrier, "mbarrier_wait").phase == parity) {
    t.mbarrier = mbarrier;
    wait(State::at_mbarrier);
  }
  __tsan_acquire(phase_object(mbarrier, parity));
}

void check_ready(const uint64_t* mbarrier, const char* name) {
  if (load(mbarrier, name).marker != fenced)
    fail(std::string(name) + ": the mbarrier has been initialised, but not fenced");
}

void arrive_bytes(uint64_t* mbarrier, size_t bytes) {
  Word word = load(mbarrier, "a bulk copy");
  __tsan_release(phase_object(mbarrier, word.phase));
  word.bytes -= int64_t(bytes);
  settle(mbarrier, word);
}

std::string describe(const uint64_t* mbarrier) {
  const auto word = std::bit_cast<Word>(*mbarrier);
  return " (the phase of parity " + std::to_string(word.phase) + " lacks " +
         std::to_string(word.pending) + " arrivals and " + std::to_string(word.bytes) + " bytes)";
}

}  // namespace orthofed::simt
