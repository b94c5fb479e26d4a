// Where a run's time went, as people read it.
#pragma once
#include <string>
#include <vector>

#include "engine/time/stopwatch.h"
#include "federation/report/summary.h"

namespace orthofed::cli {

struct TimeRow {
  std::string name;  // a client, "server"
  TimeSplit time;
};

// One row per client that shares its time, and one of the server; or of the one process there was.
std::vector<TimeRow> time_rows(const RunSummary& summary);

// A row's parts in whole per cent, which add up to 100, and its total; activities that nobody spent
// half a per cent on have no column. bars: each row ends in a stacked bar, whose letters are told
// below the table.
std::string time_table(const std::vector<TimeRow>& rows, bool bars = false);

// `whole` units shared out over the activities in proportion to their time: each gets its share
// rounded down, and what is left goes to the largest remainders (Hamilton's method).
std::vector<int> shares(const TimeSplit& time, int whole);

}  // namespace orthofed::cli
