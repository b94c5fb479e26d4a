// Fibers: stacks that a thread can leave in the middle of a function and return to. Boost.Context
// switches in about ten nanoseconds; this class adds the guard page below each stack and tells
// AddressSanitizer and ThreadSanitizer which stack is running.
#pragma once
#include <cstddef>

namespace orthofed::simt {

class Fiber {
 public:
  using Entry = void (*)(void* argument);

  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next resume() starts entry(argument). What an earlier run left on the stack is abandoned.
  void prepare(Entry entry, void* argument);
  // Runs the fiber until it suspends or returns. Called from outside any fiber.
  void resume();
  // Back to resume()'s caller. Called from within a fiber.
  static void suspend();

  bool finished() const { return finished_; }

 private:
  struct Context;
  Context* context_;
  bool finished_ = true;
};

}  // namespace orthofed::simt
