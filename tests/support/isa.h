// Runs a test body once for each instruction-set level of the processor.
#pragma once
#include <gtest/gtest.h>

#include <vector>

#include "kernels/core/parallel.h"

namespace orthofed::test {

inline std::vector<cpu::Isa> available_isas() {
  std::vector<cpu::Isa> levels;
  for (cpu::Isa level : {cpu::Isa::generic, cpu::Isa::v2, cpu::Isa::v3, cpu::Isa::v4})
    if (level <= cpu::best_isa() && (level != cpu::Isa::generic || cpu::best_isa() == level))
      levels.push_back(level);
  return levels;
}

template <class F>
void for_each_isa(F&& body) {
  const cpu::Isa before = cpu::isa();
  for (cpu::Isa level : available_isas()) {
    SCOPED_TRACE(cpu::name_of(level));
    cpu::force_isa(level);
    body();
    if (testing::Test::HasFatalFailure()) break;
  }
  cpu::force_isa(before);
}

}  // namespace orthofed::test
