// Durations, sizes and rates as people read them.
#pragma once
#include <string>

namespace orthofed::cli {

std::string format_duration(double seconds);  // "0.42 s", "42 s", "3 min 05 s", "2 h 04 min"
std::string format_clock(double seconds);     // "0:42", "3:05", "2:04:10"
std::string format_bytes(double bytes);       // "512 B", "1.2 MB": powers of 1000
std::string format_rate(double per_second);   // three significant digits: "0.42", "31.2", "1234"

}  // namespace orthofed::cli
