// Where a run's time went, as people read it.
#pragma once
#include <string>
#include <vector>

#include "engine/time/stopwatch.h"

namespace orthofed::cli {

struct TimeRow {
  std::string name;  // a client, "server"
  TimeSplit time;
};

// A row's parts in whole per cent, which add up to 100, and its total; activities that nobody spent
// half a per cent on have no column. bars: a stacked bar a row besides, and its letters below.
std::string time_table(const std::vector<TimeRow>& rows, bool bars = false);

// `whole` units shared out over the activities in proportion to their time: each gets its share
// rounded down, and what is left goes to the largest remainders (Hamilton's method).
std::vector<int> shares(const TimeSplit& time, int whole);

}  // namespace orthofed::cli
