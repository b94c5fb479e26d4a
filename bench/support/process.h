// Benchmarks that time whole steps or rounds print this of their process and of their samples.
#pragma once
#include <sys/resource.h>

#include <algorithm>
#include <vector>

namespace orthofed {

// The most memory that this process has ever had, in MiB.
inline double peak_mib() {
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
  return double(usage.ru_maxrss) / 1024;  // Linux counts KiB
}

// Takes at least one sample; of an even number it returns the upper one of the two in the middle.
inline double median(std::vector<double> samples) {
  const auto middle = samples.begin() + std::ptrdiff_t(samples.size() / 2);
  std::nth_element(samples.begin(), middle, samples.end());
  return *middle;
}

}  // namespace orthofed
