#include "engine/data/checks.h"

#include <optional>
#include <set>

namespace orthofed {
namespace {

// What is found in more than one split: name -> split -> places.
using Places = std::map<std::string, std::map<std::string, std::set<std::string>>>;

std::vector<Crossing> crossings(const Places& found) {
  std::vector<Crossing> result;
  for (const auto& [name, splits] : found) {
    if (splits.size() < 2) continue;
    Crossing crossing{name, {}};
    for (const auto& [split, places] : splits)
      crossing.places.insert(crossing.places.end(), places.begin(), places.end());
    result.push_back(std::move(crossing));
  }
  return result;
}

}  // namespace

DataReport check_data(const Dataset& dataset, int64_t workers, const Progress& progress) {
  const size_t n = dataset.samples.size();
  std::vector<std::string> digests(n);
  std::vector<std::optional<std::string>> faults(n);
  run_workers(
      int64_t(n), workers,
      [&](int64_t i) {
        const int64_t image = dataset.samples[size_t(i)].image;
        try {
          digests[size_t(i)] = dataset.source->sha256(image);
          dataset.source->load(image);
        } catch (const UserError& error) {
          faults[size_t(i)] = error.what();
        }
      },
      progress);

  DataReport report;
  Places ids, groups, copies;
  std::map<std::string, std::set<std::string>> names_of_copy;
  for (size_t i = 0; i < n; ++i) {
    const Sample& s = dataset.samples[i];
    auto& counts = report.counts[s.client][s.split];
    counts.resize(dataset.classes.size());
    ++counts[size_t(s.label)];
    if (faults[i]) report.unreadable.push_back({s.id, *faults[i]});
    const std::string place = s.split + ": " + s.id;
    ids[s.id][s.split].insert(place);
    if (!s.group.empty()) groups[s.client + ": " + s.group][s.split].insert(s.split);
    if (!digests[i].empty()) {
      copies[digests[i]][s.split].insert(place);
      names_of_copy[digests[i]].insert(s.id);
    }
  }
  // One file under one name in two splits is a crossing sample, not a copy.
  for (const auto& [digest, names] : names_of_copy)
    if (names.size() < 2) copies.erase(digest);
  report.samples = crossings(ids);
  report.groups = crossings(groups);
  report.duplicates = crossings(copies);
  return report;
}

}  // namespace orthofed
