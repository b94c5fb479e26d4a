// What tests of the emulator itself share: its schedules, and the faults it finds.
#pragma once
#include <gtest/gtest.h>

#include <string>

#include "kernels/simt/simt.h"

namespace orthofed::test {

using simt::Fault;
using simt::Schedule;

inline constexpr simt::Stream kForward{Schedule::forward, 0, {}},
    kReverse{Schedule::reverse, 0, {}}, kRandom{Schedule::random, 11, {}};

// What the launch's fault says; empty if there was none.
template <class F>
std::string fault_of(F&& body) {
  try {
    body();
  } catch (const Fault& fault) {
    return fault.what();
  }
  return "";
}

inline testing::AssertionResult contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "'" << part << "' is not in: " << text;
}

template <class F>
void for_each_schedule(F&& body) {
  for (const simt::Stream& stream : {kForward, kReverse, kRandom}) {
    SCOPED_TRACE(int(stream.schedule));
    body(stream);
  }
}

}  // namespace orthofed::test
