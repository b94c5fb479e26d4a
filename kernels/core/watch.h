// A Watch sees every kernel call of a queue: what the call was given and what it left behind
// (engine/tensor/watch.h has the two watches that exist). of_on shows it each argument in turn.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <tuple>
#include <type_traits>

#include "kernels/core/cost.h"
#include "kernels/core/types.h"

namespace orthofed {

class Watch {
 public:
  virtual ~Watch() = default;
  virtual void begin(const char* kernel) = 0;
  // A pointer to elements of `dtype`; the kernel writes through it if `output`. Returns its twin in
  // host memory, with the same contents.
  virtual void* pointer(const void* device, DType dtype, bool output) = 0;
  // The type of the elements at the last pointer, where the type is an argument of its own.
  virtual void type(DType dtype) = 0;
  // An array of items. Returns a copy in host memory of all that follows in its block of memory,
  // in which pointers then become their twins; empty where the block is unknown.
  virtual std::span<std::byte> list(const void* device) = 0;
  virtual void number(int64_t value) = 0;  // sizes, pitches, flags; also a struct's numbers()
  virtual void opaque() = 0;               // an argument whose twin nobody can make
  // All arguments have been shown and the kernel runs now.
  virtual void run(const Cost& cost) = 0;
  // The GPU's kernel has run. Shall the CPU's run on the twins?
  virtual bool ran() = 0;
  virtual void end() = 0;
};

// An argument, or an item of a list, that has pointers inside shows them:
//   template <class F> void each_pointer(const F& f) { f(parameter); f(gradient); }
// An item of a list without pointers says so with the same function, empty.
template <class X>
concept ShowsPointers = requires(X& x) {
  x.each_pointer([](auto&) {});
};

// Returns the argument as the CPU's kernel gets it: pointers become their twins.
template <class X>
X shown(Watch& watch, const X& argument) {
  if constexpr (std::is_pointer_v<X>) {
    using Element = std::remove_cv_t<std::remove_pointer_t<X>>;
    constexpr bool output = !std::is_const_v<std::remove_pointer_t<X>>;
    if (argument == nullptr) return nullptr;
    if constexpr (requires { DTypeOf<Element>::value; }) {
      return static_cast<X>(watch.pointer(argument, DTypeOf<Element>::value, output));
    } else if constexpr (std::is_void_v<Element> || std::is_arithmetic_v<Element>) {
      return static_cast<X>(watch.pointer(argument, DType::u8, output));
    } else {
      const std::span<std::byte> bytes = watch.list(argument);
      if (bytes.empty()) return argument;
      auto* const items = reinterpret_cast<Element*>(bytes.data());
      if constexpr (std::is_pointer_v<Element> || ShowsPointers<Element>) {
        for (size_t i = 0; i < bytes.size() / sizeof(Element); ++i)
          items[i] = shown(watch, items[i]);
      } else {
        watch.opaque();
      }
      return items;
    }
  } else if constexpr (ShowsPointers<X>) {
    X twin = argument;
    twin.each_pointer([&watch](auto& p) { p = shown(watch, p); });
    return twin;
  } else {
    if constexpr (std::is_arithmetic_v<X>) watch.number(int64_t(argument));
    if constexpr (std::is_same_v<X, DType>) watch.type(argument);
    if constexpr (requires { argument.numbers(); })
      for (const int64_t value : argument.numbers()) watch.number(value);
    return argument;
  }
}

}  // namespace orthofed
