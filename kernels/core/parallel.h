// Loops over the cores, and over the instruction sets.
//
// A kernel writes one plain loop; parallel_for cuts it into chunks of a fixed size (never by the
// number of threads, so results do not depend on it), hands the chunks to OpenMP, and runs each
// through run_cloned, which holds the loop body compiled for x86-64-v2, -v3 and -v4 and takes the
// best one the processor has. This is the only place that knows about instruction sets: `flatten`
// inlines the body (and what it calls, if it can be inlined) into the clone, and the compiler
// vectorises it there. Feature names instead of arch=...: GCC inlines only into the same -march.
// An OpenMP region inside a body would be outlined before it is cloned: keep bodies free of
// pragmas.
#pragma once
#include <algorithm>
#include <cstdint>

namespace orthofed::cpu {

enum class Isa { generic, v2, v3, v4 };

Isa isa();       // the best level of this processor, or the one that OF_ISA=v2|v3|v4 asks for
Isa best_isa();  // the best level of this processor
void force_isa(Isa level);  // for tests; throws UserError where the processor lacks the level
const char* name_of(Isa level);
bool native_bf16();  // does this processor multiply bf16, and does isa() allow it (v4)?

#if defined(__x86_64__)
#define OF_TARGET_V2 "sse3,ssse3,sse4.1,sse4.2,popcnt"
#define OF_TARGET_V3 OF_TARGET_V2 ",avx,avx2,fma,f16c,bmi,bmi2,lzcnt,movbe"
#define OF_TARGET_V4 \
  OF_TARGET_V3 ",avx512f,avx512bw,avx512cd,avx512dq,avx512vl,prefer-vector-width=512"
#define OF_TARGET_BF16 \
  OF_TARGET_V4 ",avx512bf16"  // native_bf16(); no clone, a few write it by hand
template <class F>
__attribute__((target(OF_TARGET_V2), flatten, noinline)) void run_v2(const F& body) {
  body();
}
template <class F>
__attribute__((target(OF_TARGET_V3), flatten, noinline)) void run_v3(const F& body) {
  body();
}
template <class F>
__attribute__((target(OF_TARGET_V4), flatten, noinline)) void run_v4(const F& body) {
  body();
}
template <class F>
void run_cloned(const F& body) {
  switch (isa()) {
    case Isa::v4:
      return run_v4(body);
    case Isa::v3:
      return run_v3(body);
    default:
      return run_v2(body);
  }
}
#else
template <class F>
void run_cloned(const F& body) {
  body();
}
#endif

// Runs body(begin, end) over [0, n) in chunks of `grain`. Exceptions must not leave the body.
template <class F>
void parallel_for(int64_t n, int64_t grain, const F& body) {
  const int64_t chunks = n <= 0 ? 0 : (n + grain - 1) / grain;
  const auto run_chunk = [&](int64_t c) {
    const int64_t begin = c * grain, end = std::min(n, begin + grain);
    run_cloned([&] { body(begin, end); });
  };
  if (chunks == 1) return run_chunk(0);
#pragma omp parallel for schedule(dynamic)
  for (int64_t c = 0; c < chunks; ++c) run_chunk(c);
}

int threads();            // how many OpenMP threads are in use (1 without OpenMP)
void set_threads(int n);  // n is a recorded setting of a run, never the machine's core count

}  // namespace orthofed::cpu
