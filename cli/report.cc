#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/commands.h"
#include "cli/session.h"
#include "cli/terminal/federation_view.h"
#include "cli/terminal/table.h"
#include "cli/terminal/time_table.h"
#include "engine/io/files.h"

namespace orthofed::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Runs of one method that differ in the seed.
struct Group {
  std::vector<std::string> clients;
  std::map<std::string, std::vector<double>> of;  // client, or "mean", "union", "general"
  std::vector<uint64_t> seeds;
};

double number(const json& j) {
  return j.is_number() ? j.get<double>() : NAN;
}

double mean(const std::vector<double>& v) {
  double sum = 0;
  for (double x : v) sum += x;
  return sum / double(v.size());
}

void add(Group& group, const json& summary) {
  group.seeds.push_back(summary.at("seed").get<uint64_t>());
  double general = 0;
  for (const json& c : summary.at("clients")) {
    const std::string name = c.at("name");
    if (group.seeds.size() == 1) group.clients.push_back(name);
    group.of[name].push_back(number(c.at("balanced_accuracy")));
    general +=
        number(c.at("general").at("balanced_accuracy")) / double(summary.at("clients").size());
  }
  group.of["general"].push_back(general);
  group.of["mean"].push_back(number(summary.at("mean").at("balanced_accuracy")));
  const json& u = summary.at("union");
  if (u.is_null()) return;
  for (const char* part : {"value", "low", "high"})
    group.of[std::string("union ") + part].push_back(number(u.at("balanced_accuracy").at(part)));
}

TimeSplit split(const json& time) {
  TimeSplit t;
  for (const Activity a : kActivities) t[a] = time.at(name_of(a)).get<double>();
  return t;
}

// As far as its times go.
RunSummary times_of(const json& summary) {
  RunSummary s;
  for (const json& c : summary.at("clients")) {
    ClientSummary& client = s.clients.emplace_back();
    client.name = c.at("name");
    client.bytes_sent = c.at("bytes_sent");
    if (!c.at("time").is_null()) client.time = split(c.at("time"));
  }
  s.time = split(summary.at("time"));
  return s;
}

// Of each round, as of the run: the clients' as they told it with the round (metrics.jsonl), and
// the server's, if there was one.
json times_by_round(const std::string& folder, const json& summary) {
  json rounds = json::array();
  for (const json& time : summary.value("time_by_round", json::array()))
    rounds.push_back({{"clients", json::object()}, {"time", time}});
  std::istringstream lines(read_text(folder + "/metrics.jsonl"));
  for (std::string text; std::getline(lines, text);) {
    const json line = json::parse(text);
    if (line.contains("time"))
      rounds.at(line.at("round").get<size_t>())["clients"][line.at("client")] = line.at("time");
  }
  return rounds;
}

void print_times(const std::map<std::string, json>& runs, bool by_round, bool as_json) {
  json out;
  for (const auto& [folder, summary] : runs) {
    const json rounds = by_round ? times_by_round(folder, summary) : json::array();
    if (as_json) {
      for (const json& c : summary.at("clients"))
        out[folder]["clients"][c.at("name")] = c.at("time");
      out[folder]["time"] = summary.at("time");
      if (by_round) out[folder]["rounds"] = rounds;
      continue;
    }
    std::cout << folder << "\n\n" << time_table(time_rows(times_of(summary)), true) << "\n";
    for (size_t r = 0; r < rounds.size(); ++r) {
      std::vector<TimeRow> rows;
      for (const auto& [client, time] : rounds[r].at("clients").items())
        rows.push_back({client, split(time)});
      rows.push_back({"server", split(rounds[r].at("time"))});
      std::cout << fmt::format("round {} of {}\n\n{}\n", r + 1, rounds.size(),
                               time_table(rows, true));
    }
  }
  if (as_json) std::cout << out.dump() << "\n";
}

}  // namespace

int report(const ReportOptions& o) {
  require_directory(o.folder, "the folder of runs");
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(o.folder))
    if (entry.path().filename() == "summary.json") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  if (files.empty())
    throw UserError(o.folder +
                    ": no summary.json below it; `orthofed run` writes one when it is done");

  std::map<std::string, Group> groups;
  std::map<std::string, json> runs;  // by folder
  for (const fs::path& file : files) {
    try {
      const json summary = json::parse(read_text(file.string()));
      add(groups[summary.at("method").get<std::string>()], summary);
      if (o.time) times_of(runs[file.parent_path().string()] = summary);
    } catch (const json::exception& e) {
      throw UserError(fmt::format("{}: not a run's summary ({})", file.string(), e.what()));
    }
  }
  if (o.time) {
    try {
      print_times(runs, o.rounds, o.global.json);
    } catch (const json::exception& e) {
      throw UserError(
          fmt::format("metrics.jsonl of a run below {} is not one ({})", o.folder, e.what()));
    }
    return 0;
  }
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
      row.push_back(g.of.contains(client) ? score(mean(g.of.at(client))) : "-");
    const std::vector<double>& means = g.of.at("mean");
    row.push_back(score(mean(means)));
    row.push_back(score(*std::min_element(means.begin(), means.end())));
    row.push_back(score(*std::max_element(means.begin(), means.end())));
    row.push_back(score(mean(g.of.at("general"))));
    const bool has_union = g.of.contains("union value");
    row.push_back(has_union ? score(mean(g.of.at("union value"))) : "-");
    row.push_back(has_union ? fmt::format("[{}, {}]", score(mean(g.of.at("union low"))),
                                          score(mean(g.of.at("union high"))))
                            : "-");
    table.add_row(row);
  }
  std::cout
      << "Balanced accuracy: mean over seeds; lowest and highest are of the mean over sites\n\n"
      << (o.markdown ? table.markdown() : table.text());
  return 0;
}

}  // namespace orthofed::cli
