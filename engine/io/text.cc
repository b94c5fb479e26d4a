#include "engine/io/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/core/check.h"

namespace orthofed {

namespace {

// One decoded character: its code point (-1 where the bytes are not UTF-8) and its length in bytes.
struct Character {
  int32_t code = -1;
  size_t bytes = 1;
};

Character decode(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || at + length > text.size()) return {};
  int32_t code = lead & (0x7F >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {};
    code = (code << 6) | (byte(i) & 0x3F);
  }
  const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
  const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
  return overlong || surrogate || code > 0x10FFFF ? Character{} : Character{code, length};
}

// The blocks of Unicode's East Asian Width table (UAX 11) that occur in practice.
int columns(int32_t code) {
  const auto in = [&](int32_t first, int32_t last) { return code >= first && code <= last; };
  if (in(0x0300, 0x036F) || in(0x200B, 0x200F) || in(0x20D0, 0x20FF) || in(0xFE00, 0xFE0F))
    return 0;
  const bool wide = in(0x1100, 0x115F) || in(0x2E80, 0x303E) || in(0x3041, 0xA4CF) ||
                    in(0xAC00, 0xD7A3) || in(0xF900, 0xFAFF) || in(0xFE30, 0xFE6F) ||
                    in(0xFF00, 0xFF60) || in(0xFFE0, 0xFFE6) || in(0x1F300, 0x1FAFF) ||
                    in(0x20000, 0x3FFFD);
  return wide ? 2 : 1;
}

}  // namespace

int display_width(std::string_view text) {
  int width = 0;
  for (size_t at = 0; at < text.size();) {
    const Character c = decode(text, at);
    width += columns(c.code);
    at += c.bytes;
  }
  return width;
}

std::string fit(std::string_view text, int width) {
  if (display_width(text) <= width) return std::string(text);
  const int dots = std::clamp(width, 0, 3);
  std::string cut;
  int used = dots;
  for (size_t at = 0; at < text.size();) {
    const Character c = decode(text, at);
    if (used + columns(c.code) > width) break;
    used += columns(c.code);
    cut += text.substr(at, c.bytes);
    at += c.bytes;
  }
  return cut + std::string(static_cast<size_t>(dots), '.');
}

std::string string_literal(std::string_view text) {
  std::string literal = "\"";
  for (size_t at = 0; at < text.size();) {
    const Character c = decode(text, at);
    switch (c.code) {
      case '"':
        literal += "\\\"";
        break;
      case '\\':
        literal += "\\\\";
        break;
      case '\n':
        literal += "\\n";
        break;
      case '\r':
        literal += "\\r";
        break;
      case '\t':
        literal += "\\t";
        break;
      case -1:
        literal += "\xEF\xBF\xBD";
        break;
      default:
        if (c.code < 0x20 || c.code == 0x7F) {
          literal += fmt::format("\\u{:04x}", c.code);
        } else {
          literal += text.substr(at, c.bytes);
        }
    }
    at += c.bytes;
  }
  return literal + "\"";
}

std::string number_literal(double value) {
  OF_CHECK(std::isfinite(value), "no JSON or TOML number is infinite or NaN");
  std::string literal = fmt::format("{}", value);
  // "1" would be read as an integer.
  return literal.find_first_of(".e") == std::string::npos ? literal + ".0" : literal;
}

std::string joined(const std::vector<std::string>& words, std::string_view separator) {
  return fmt::format("{}", fmt::join(words, separator));
}

}  // namespace orthofed
