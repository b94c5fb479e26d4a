#include "kernels/core/parallel.h"

#include <atomic>
#include <cstdlib>
#include <string>

#include "kernels/core/check.h"
#ifdef _OPENMP
#include <omp.h>
#endif

namespace orthofed::cpu {

const char* name_of(Isa level) {
  switch (level) {
    case Isa::v2:
      return "x86-64-v2";
    case Isa::v3:
      return "x86-64-v3";
    case Isa::v4:
      return "x86-64-v4";
    case Isa::generic:
      return "generic";
  }
  return "?";
}

Isa best_isa() {
#if defined(__x86_64__)
  static const Isa best = [] {
    __builtin_cpu_init();
    const bool v2 = __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("sse4.2") &&
                    __builtin_cpu_supports("popcnt");
    const bool v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    if (!v2)
      throw UserError("this processor is older than x86-64-v2 (2009); orthofed needs SSE4.2");
    return v4 ? Isa::v4 : v3 ? Isa::v3 : Isa::v2;
  }();
  return best;
#else
  return Isa::generic;
#endif
}

namespace {

Isa chosen_at_start() {
  const char* wish = std::getenv("OF_ISA");
  if (wish == nullptr || *wish == '\0') return best_isa();
  for (Isa level : {Isa::v2, Isa::v3, Isa::v4}) {
    if (std::string(name_of(level)) == std::string("x86-64-") + wish) {
      if (level > best_isa())
        throw UserError(std::string("OF_ISA=") + wish + ": this processor has only " +
                        name_of(best_isa()));
      return level;
    }
  }
  throw UserError(std::string("OF_ISA=") + wish + ": expected v2, v3 or v4");
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> level{chosen_at_start()};
  return level;
}

}  // namespace

Isa isa() {
  return current().load(std::memory_order_relaxed);
}

void force_isa(Isa level) {
  if (level > best_isa())
    throw UserError(std::string(name_of(level)) + ": this processor has only " +
                    name_of(best_isa()));
  current().store(level);
}

bool native_bf16() {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has && isa() == Isa::v4;
#else
  return false;
#endif
}

int threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

void set_threads(int n) {
#ifdef _OPENMP
  omp_set_num_threads(n);
#else
  (void)n;
#endif
}

}  // namespace orthofed::cpu
