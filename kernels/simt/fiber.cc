#include "kernels/simt/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <boost/context/detail/fcontext.hpp>
#include <cerrno>
#include <cstring>
#include <string>

#include "kernels/core/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(OF_TSAN_FIBERS)
#include <sanitizer/tsan_interface.h>
#endif

namespace orthofed::simt {
namespace {

namespace context = boost::context::detail;

// AddressSanitizer's red zones make frames several times larger.
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 * 1024;
#else
constexpr size_t kStackBytes = 128 * 1024;
#endif

}  // namespace

struct Fiber::Context {
  std::byte* mapping = nullptr;  // a guard page, then the stack
  size_t guard = 0;
  context::fcontext_t inside = nullptr;   // where the fiber goes on
  context::fcontext_t outside = nullptr;  // where resume() was called
  Entry entry = nullptr;
  void* argument = nullptr;
  Fiber* owner = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  const void* outside_stack = nullptr;
  size_t outside_size = 0;
  void* fake_stack_inside = nullptr;
#endif
#if defined(OF_TSAN_FIBERS)
  void* tsan_inside = nullptr;
  void* tsan_outside = nullptr;
#endif

  std::byte* stack() const {
    return mapping + guard;
  }
  static void begin(context::transfer_t from);
  void leave(bool for_good);
};

namespace {
thread_local Fiber* running = nullptr;
}

Fiber::Fiber() : context_(new Context) {
  context_->owner = this;
  context_->guard = size_t(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, context_->guard + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    delete context_;
    throw Error(std::string("no memory for an emulated thread's stack: ") + std::strerror(errno));
  }
  context_->mapping = static_cast<std::byte*>(memory);
  if (mprotect(memory, context_->guard, PROT_NONE) != 0) {
    munmap(memory, context_->guard + kStackBytes);
    delete context_;
    throw Error(std::string("cannot guard a stack: ") + std::strerror(errno));
  }
#if defined(OF_TSAN_FIBERS)
  context_->tsan_inside = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#if defined(OF_TSAN_FIBERS)
  __tsan_destroy_fiber(context_->tsan_inside);
#endif
  munmap(context_->mapping, context_->guard + kStackBytes);
  delete context_;
}

void Fiber::prepare(Entry entry, void* argument) {
  context_->entry = entry;
  context_->argument = argument;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(context_->stack(), kStackBytes);
  context_->fake_stack_inside = nullptr;
#endif
  context_->inside =
      context::make_fcontext(context_->stack() + kStackBytes, kStackBytes, &Context::begin);
  finished_ = false;
}

void Fiber::resume() {
  Fiber* const before = running;
  running = this;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack_outside = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack_outside, context_->stack(), kStackBytes);
#endif
#if defined(OF_TSAN_FIBERS)
  context_->tsan_outside = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(context_->tsan_inside, __tsan_switch_to_fiber_no_sync);
#endif
  const context::transfer_t back = context::jump_fcontext(context_->inside, context_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_outside, nullptr, nullptr);
#endif
  context_->inside = back.fctx;
  running = before;
}

void Fiber::suspend() {
  running->context_->leave(false);
}

void Fiber::Context::leave(bool for_good) {
  (void)for_good;
#if defined(__SANITIZE_ADDRESS__)
  // A fiber that leaves for good hands null over, and its fake stack is freed.
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack_inside, outside_stack,
                                 outside_size);
#endif
#if defined(OF_TSAN_FIBERS)
  __tsan_switch_to_fiber(tsan_outside, __tsan_switch_to_fiber_no_sync);
#endif
  const context::transfer_t back = context::jump_fcontext(outside, this);
  outside = back.fctx;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_inside, &outside_stack, &outside_size);
#endif
}

void Fiber::Context::begin(context::transfer_t from) {
  auto* self = static_cast<Context*>(from.data);
  self->outside = from.fctx;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &self->outside_stack, &self->outside_size);
#endif
  self->entry(self->argument);
  self->owner->finished_ = true;
  self->leave(true);
}

}  // namespace orthofed::simt
