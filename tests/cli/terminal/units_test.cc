#include "cli/terminal/units.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace orthofed::cli {
namespace {

TEST(Units, Durations) {
  EXPECT_EQ(format_duration(0), "0 s");
  EXPECT_EQ(format_duration(0.4217), "0.42 s");
  EXPECT_EQ(format_duration(9.94), "9.9 s");
  EXPECT_EQ(format_duration(9.96), "10 s");
  EXPECT_EQ(format_duration(59.7), "1 min 00 s");
  EXPECT_EQ(format_duration(185), "3 min 05 s");
  EXPECT_EQ(format_duration(7440), "2 h 04 min");
  EXPECT_EQ(format_duration(-1), "?");
  EXPECT_EQ(format_duration(std::nan("")), "?");
  EXPECT_EQ(format_clock(0), "0:00");
  EXPECT_EQ(format_clock(185.9), "3:05");
  EXPECT_EQ(format_clock(3599.99), "59:59");
  EXPECT_EQ(format_clock(7450), "2:04:10");
  EXPECT_EQ(format_clock(std::numeric_limits<double>::infinity()), "?");
}

TEST(Units, BytesAndRates) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(1000), "1.0 kB");
  EXPECT_EQ(format_bytes(1.24e6), "1.2 MB");
  EXPECT_EQ(format_bytes(123456789), "123 MB");
  EXPECT_EQ(format_bytes(999600), "1.0 MB");
  EXPECT_EQ(format_bytes(2.5e18), "2500 PB");
  EXPECT_EQ(format_bytes(-1), "?");
  EXPECT_EQ(format_rate(0.417), "0.42");
  EXPECT_EQ(format_rate(31.23), "31.2");
  EXPECT_EQ(format_rate(9.996), "10.0");
  EXPECT_EQ(format_rate(1234.4), "1234");
  EXPECT_EQ(format_rate(std::nan("")), "?");
}

}  // namespace
}  // namespace orthofed::cli
