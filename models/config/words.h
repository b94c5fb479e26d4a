// A setting that is one of a few words: an enum class beside the list of its words.
//
// The list is told once, where OF_WORDS names it. The parser, its messages, `orthofed config`, docs
// and everything that prints a setting read it from here; all other code compares enumerators.
#pragma once
#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

namespace orthofed {

// The words of E in the order of its enumerators, whose values are 0, 1, ...
template <class E>
struct Words;

#define OF_WORDS(E, ...)                                 \
  template <>                                            \
  struct Words<E> {                                      \
    static constexpr const char* list[] = {__VA_ARGS__}; \
  }

template <class E>
constexpr const char* word(E value) {
  return Words<E>::list[static_cast<size_t>(value)];
}

// Nothing where `text` is none of E's words.
template <class E>
std::optional<E> value_of(std::string_view text) {
  for (size_t i = 0; i < std::size(Words<E>::list); ++i)
    if (text == Words<E>::list[i]) return static_cast<E>(i);
  return std::nullopt;
}

// A field of some E, whichever it is, for the table of keys.
struct WordField {
  std::span<const char* const> words;
  void* field;
  size_t (*get)(const void* field);
  void (*set)(void* field, size_t index);

  template <class E>
  static WordField of(E* field) {
    return {Words<E>::list, field,
            [](const void* from) { return static_cast<size_t>(*static_cast<const E*>(from)); },
            [](void* to, size_t index) { *static_cast<E*>(to) = static_cast<E>(index); }};
  }
  const char* word() const { return words[get(field)]; }
};

}  // namespace orthofed
