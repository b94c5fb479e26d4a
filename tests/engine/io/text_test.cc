#include "engine/io/text.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/core/check.h"

namespace orthofed {
namespace {

TEST(Text, DisplayWidth) {
  EXPECT_EQ(display_width(""), 0);
  EXPECT_EQ(display_width("abc"), 3);
  EXPECT_EQ(display_width("Zürich"), 6);
  EXPECT_EQ(display_width("e\xCC\x81"), 1);  // e and a combining acute accent
  EXPECT_EQ(display_width("東京"), 4);
  EXPECT_EQ(display_width("🔬"), 2);
  EXPECT_EQ(display_width("a\xFF"
                          "b"),
            3);                                 // no UTF-8
  EXPECT_EQ(display_width("\xE6\x9D"), 2);      // cut short
  EXPECT_EQ(display_width("\xC0\xAF"), 2);      // overlong
  EXPECT_EQ(display_width("\xED\xA0\x80"), 3);  // a surrogate
}

TEST(Text, Fit) {
  EXPECT_EQ(fit("abcdef", 6), "abcdef");
  EXPECT_EQ(fit("abcdef", 5), "ab...");
  EXPECT_EQ(fit("東京東京", 7), "東京...");
  EXPECT_EQ(fit("東京東京", 6), "東...");
  EXPECT_EQ(fit("abcdef", 2), "..");
  EXPECT_EQ(fit("abcdef", 0), "");
  EXPECT_EQ(fit("abcdef", -1), "");
  for (int width = 0; width < 12; ++width)
    EXPECT_LE(display_width(fit("aä東🔬bcdef", width)), width);
}

TEST(Text, Literals) {
  EXPECT_EQ(string_literal("a \"b\" \\ \n\t\r"), R"("a \"b\" \\ \n\t\r")");
  EXPECT_EQ(string_literal(std::string_view("\0\x1f\x7f", 3)), R"("\u0000\u001f\u007f")");
  EXPECT_EQ(string_literal("Zürich 🔬"), "\"Zürich 🔬\"");
  EXPECT_EQ(string_literal("\xFFx"), "\"\xEF\xBF\xBDx\"");
  EXPECT_EQ(number_literal(1), "1.0");
  EXPECT_EQ(number_literal(1e-5), "1e-05");
  for (const double value : {0.1, 1.0 / 3, 1e300, 5e-324, -0.0, 3e-4})
    EXPECT_EQ(std::stod(number_literal(value == 5e-324 ? 1e-300 : value)),
              value == 5e-324 ? 1e-300 : value);
  EXPECT_THROW(number_literal(std::nan("")), Error);
}

}  // namespace
}  // namespace orthofed
