#include "cli/terminal/time_table.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cli/terminal/table.h"
#include "cli/terminal/units.h"
#include "engine/io/text.h"

namespace orthofed::cli {
namespace {

constexpr int kBar = 40;  // columns
constexpr const char* kLetters = "sjTEAdc.o";
static_assert(std::char_traits<char>::length(kLetters) == kActivities.size());

std::string bar(const TimeSplit& time) {
  const std::vector<int> columns = shares(time, kBar);
  std::string text;
  for (const Activity a : kActivities)
    text += std::string(size_t(columns[size_t(a)]), kLetters[size_t(a)]);
  return text;
}

}  // namespace

std::vector<int> shares(const TimeSplit& time, int whole) {
  const double total = time.total();
  std::vector<int> units(kActivities.size(), 0);
  if (!(total > 0)) return units;
  std::vector<double> remainders;
  for (const double seconds : time.seconds) {
    const double exact = double(whole) * seconds / total;
    units[remainders.size()] = int(std::floor(exact));
    remainders.push_back(exact - std::floor(exact));
  }
  std::vector<size_t> order(units.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return remainders[a] > remainders[b]; });
  const int left = whole - std::accumulate(units.begin(), units.end(), 0);
  for (size_t i = 0; i < order.size() && int(i) < left; ++i) ++units[order[i]];
  return units;
}

std::string time_table(const std::vector<TimeRow>& rows, bool bars) {
  std::vector<std::vector<int>> percent;
  for (const TimeRow& row : rows) percent.push_back(shares(row.time, 100));
  std::vector<Activity> shown;
  for (const Activity a : kActivities)
    if (std::any_of(percent.begin(), percent.end(),
                    [&](const std::vector<int>& p) { return p[size_t(a)] > 0; }))
      shown.push_back(a);

  std::vector<std::string> header = {"time"}, legend;
  std::vector<Align> aligns(shown.size() + 2, Align::right);
  aligns[0] = Align::left;
  for (const Activity a : shown) {
    std::string name = name_of(a);
    std::replace(name.begin(), name.end(), '_', '-');
    header.push_back(name);
    legend.push_back(fmt::format("{} {}", kLetters[size_t(a)], name));
  }
  header.push_back("total");
  if (bars) {
    header.emplace_back();
    aligns.push_back(Align::left);
  }
  Table table(header, aligns);
  for (size_t i = 0; i < rows.size(); ++i) {
    std::vector<std::string> cells = {rows[i].name};
    for (const Activity a : shown) cells.push_back(fmt::format("{} %", percent[i][size_t(a)]));
    cells.push_back(format_duration(rows[i].time.total()));
    if (bars) cells.push_back(bar(rows[i].time));
    table.add_row(cells);
  }
  return table.text() + (bars ? joined(legend) + "\n" : "");
}

std::vector<TimeRow> time_rows(const RunSummary& summary) {
  std::vector<TimeRow> rows;
  bool alone = true;
  for (const ClientSummary& c : summary.clients) {
    if (c.time) rows.push_back({c.name, *c.time});
    alone = alone && c.bytes_sent == 0;
  }
  rows.push_back({alone ? "this run" : "server", summary.time});
  return rows;
}

}  // namespace orthofed::cli
