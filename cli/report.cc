#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/terminal/score_table.h"
#include "cli/terminal/table.h"
#include "cli/terminal/time_table.h"
#include "engine/io/files.h"
#include "federation/report/scores.h"

namespace orthofed::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Runs of one method that differ in the seed.
struct Group {
  std::vector<std::string> clients;
  std::map<std::string, std::vector<double>> of;  // client, or "mean", "general", "union value"
  std::vector<uint64_t> seeds;
};

void add(Group& group, const RunSummary& run) {
  constexpr auto score = &SiteMetrics::balanced_accuracy;
  group.seeds.push_back(run.seed);
  for (const ClientSummary& c : run.clients) {
    if (group.seeds.size() == 1) group.clients.push_back(c.name);
    group.of[c.name].push_back(score_of(c, &ClientSummary::personal, score));
  }
  group.of["mean"].push_back(mean_over_clients(run, &ClientSummary::personal, score));
  group.of["general"].push_back(mean_over_clients(run, &ClientSummary::general, score));
  if (const std::optional<UnionScores> u = union_of_sites(run)) {
    group.of["union value"].push_back(u->balanced_accuracy.value);
    group.of["union low"].push_back(u->balanced_accuracy.low);
    group.of["union high"].push_back(u->balanced_accuracy.high);
  }
}

// As summary.json has it.
json json_of(const TimeSplit& time) {
  json object = {{"total", time.total()}};
  for (const Activity a : kActivities) object[name_of(a)] = time[a];
  return object;
}

// Of each round, as of the run: the clients' times, and the server's, if there was one.
std::vector<std::vector<TimeRow>> rows_by_round(const std::string& folder, const RunSummary& run) {
  std::vector<std::vector<TimeRow>> rounds;
  for (const auto& clients :
       read_client_times(folder + "/metrics.jsonl", int64_t(run.time_by_round.size()))) {
    std::vector<TimeRow>& rows = rounds.emplace_back();
    for (const auto& [client, time] : clients) rows.push_back({client, time});
    rows.push_back({"server", run.time_by_round[rounds.size() - 1]});
  }
  return rounds;
}

void print_times(const std::map<std::string, RunSummary>& runs, bool by_round) {
  for (const auto& [folder, run] : runs) {
    std::cout << folder << "\n\n" << time_table(time_rows(run), true) << "\n";
    if (!by_round) continue;
    const auto rounds = rows_by_round(folder, run);
    for (size_t r = 0; r < rounds.size(); ++r)
      std::cout << fmt::format("round {} of {}\n\n{}\n", r + 1, rounds.size(),
                               time_table(rounds[r], true));
  }
}

json json_of_times(const std::map<std::string, RunSummary>& runs, bool by_round) {
  json out;
  for (const auto& [folder, run] : runs) {
    for (const ClientSummary& c : run.clients)
      out[folder]["clients"][c.name] = c.time ? json_of(*c.time) : json(nullptr);
    out[folder]["time"] = json_of(run.time);
    if (!by_round) continue;
    out[folder]["rounds"] = json::array();
    for (const std::vector<TimeRow>& rows : rows_by_round(folder, run)) {
      json round = {{"clients", json::object()}, {"time", json_of(rows.back().time)}};
      for (size_t i = 0; i + 1 < rows.size(); ++i)
        round["clients"][rows[i].name] = json_of(rows[i].time);
      out[folder]["rounds"].push_back(round);
    }
  }
  return out;
}

}  // namespace

int report_command(const ReportArguments& o) {
  require_directory(o.folder, "the folder of runs");
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(o.folder))
    if (entry.path().filename() == "summary.json") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  if (files.empty())
    throw UserError(o.folder +
                    ": no summary.json below it; `orthofed run` writes one when it is done");

  std::map<std::string, Group> groups;
  std::map<std::string, RunSummary> runs;  // by folder
  for (const fs::path& file : files) {
    const RunSummary run = read_summary(file.string());
    add(groups[run.method], run);
    runs[file.parent_path().string()] = run;
  }
  if (o.time && o.global.json)
    std::cout << json_of_times(runs, o.rounds).dump() << "\n";
  else if (o.time)
    print_times(runs, o.rounds);
  if (o.time) return 0;
  if (o.global.json) {
    json out;
    for (const auto& [method, g] : groups) {
      out[method]["seeds"] = g.seeds;
      for (const auto& [name, v] : g.of) out[method]["balanced_accuracy"][name] = v;
    }
    std::cout << out.dump() << "\n";
    return 0;
  }

  const Group& first = groups.begin()->second;
  std::vector<std::string> header = {"method", "seeds"};
  header.insert(header.end(), first.clients.begin(), first.clients.end());
  header.insert(header.end(), {"mean", "lowest", "highest", "general", "union", "95 % interval"});
  Table table(header);
  for (const auto& [method, g] : groups) {
    std::vector<std::string> row = {method, std::to_string(g.seeds.size())};
    for (const std::string& client : first.clients)
      row.push_back(g.of.contains(client) ? score(mean_of_defined(g.of.at(client))) : "-");
    const std::vector<double>& means = g.of.at("mean");
    row.push_back(score(mean_of_defined(means)));
    row.push_back(score(*std::min_element(means.begin(), means.end())));
    row.push_back(score(*std::max_element(means.begin(), means.end())));
    row.push_back(score(mean_of_defined(g.of.at("general"))));
    const bool has_union = g.of.contains("union value");
    row.push_back(has_union ? score(mean_of_defined(g.of.at("union value"))) : "-");
    row.push_back(has_union ? fmt::format("[{}, {}]", score(mean_of_defined(g.of.at("union low"))),
                                          score(mean_of_defined(g.of.at("union high"))))
                            : "-");
    table.add_row(row);
  }
  std::cout
      << "Balanced accuracy: mean over seeds; lowest and highest are of the mean over sites\n\n"
      << (o.markdown ? table.markdown() : table.text());
  return 0;
}

}  // namespace orthofed::cli
