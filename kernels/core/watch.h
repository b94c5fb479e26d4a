// Somebody who looks at every kernel call of a queue: at what it was given and what it left
// (engine/tensor/watch.h has the two that exist). of_on shows it each argument in turn.
#pragma once
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "kernels/core/cost.h"
#include "kernels/core/types.h"

namespace orthofed {

class Watch {
 public:
  virtual ~Watch() = default;
  virtual void begin(const char* kernel) = 0;
  // A pointer argument to elements of `dtype`; written through if `output`. Gives its twin in host
  // memory, with the same contents.
  virtual void* pointer(const void* device, DType dtype, bool output) = 0;
  // Items that hold pointers. Gives a copy of them in host memory; what they point to stays where
  // it is.
  virtual const void* list(const void* device) = 0;
  virtual void number(int64_t value) = 0;  // sizes, pitches, flags; also a struct's numbers()
  virtual void opaque() = 0;  // an argument with pointers inside, whose twin nobody can make
  // All arguments have been shown and the kernel runs now.
  virtual void run(const Cost& cost) = 0;
  // The GPU's kernel has run. Shall the CPU's run on the twins?
  virtual bool ran() = 0;
  virtual void end() = 0;
};

template <class X>
concept HoldsPointers = requires {
  X::holds_pointers;
};

// The argument as the CPU's kernel gets it: pointers become their twins.
template <class X>
X shown(Watch& watch, const X& argument) {
  if constexpr (std::is_pointer_v<X>) {
    using Element = std::remove_cv_t<std::remove_pointer_t<X>>;
    constexpr bool output = !std::is_const_v<std::remove_pointer_t<X>>;
    if constexpr (requires { DTypeOf<Element>::value; }) {
      return static_cast<X>(watch.pointer(argument, DTypeOf<Element>::value, output));
    } else if constexpr (std::is_void_v<Element>) {
      if (argument != nullptr) watch.opaque();
      return argument;
    } else {
      return static_cast<X>(const_cast<Element*>(
          static_cast<const Element*>(argument == nullptr ? nullptr : watch.list(argument))));
    }
  } else {
    if constexpr (std::is_arithmetic_v<X>) watch.number(int64_t(argument));
    if constexpr (requires { argument.numbers(); })
      for (const int64_t value : argument.numbers()) watch.number(value);
    if constexpr (HoldsPointers<X>) watch.opaque();
    return argument;
  }
}

}  // namespace orthofed
