#include <fmt/ranges.h>

#include <filesystem>
#include <iostream>
#include <optional>

#include "cli/commands.h"
#include "cli/session.h"
#include "cli/terminal/json.h"
#include "cli/terminal/table.h"
#include "cli/terminal/units.h"
#include "engine/data/checks.h"
#include "engine/io/text.h"
#include "models/training/dry_run.h"
#include "models/training/site_data.h"

namespace orthofed::cli {
namespace {

constexpr size_t kShown = 8;  // of each kind of finding; the rest is counted

void list(const std::string& title, const std::vector<std::string>& found) {
  std::cout << fmt::format("{}: {}\n", title,
                           found.empty() ? "none" : std::to_string(found.size()));
  for (size_t i = 0; i < found.size() && i < kShown; ++i) std::cout << "  " << found[i] << "\n";
  if (found.size() > kShown) std::cout << fmt::format("  and {} more\n", found.size() - kShown);
}

std::vector<std::string> lines(const std::vector<Crossing>& crossings) {
  std::vector<std::string> all;
  for (const Crossing& c : crossings) all.push_back(c.name + "  in  " + joined(c.places));
  return all;
}

// What no run can start with.
std::vector<std::string> missing_splits(const DataReport& report, bool validation) {
  std::vector<std::string> all;
  for (const auto& [client, splits] : report.counts)
    for (const char* split : {"train", "test"})
      if (!splits.contains(split) && !(validation && std::string(split) == "test"))
        all.push_back(fmt::format("{} has no {} images", client, split));
  return all;
}

std::string json_counts(const DataReport& report) {
  std::vector<std::pair<std::string, std::string>> clients;
  for (const auto& [client, splits] : report.counts) {
    std::vector<std::pair<std::string, std::string>> of_client;
    for (const auto& [split, counts] : splits)
      of_client.emplace_back(split, fmt::format("[{}]", fmt::join(counts, ", ")));
    clients.emplace_back(client, json_object(of_client));
  }
  return json_object(clients);
}

std::string json_cost(const DryRun& d) {
  return json_object({{"seconds_per_step", fmt::format("{:.4g}", d.seconds_per_step)},
                      {"seconds_per_round", fmt::format("{:.4g}", d.seconds_per_round)},
                      {"memory_bytes", std::to_string(d.peak_bytes)},
                      {"bytes_sent", std::to_string(d.bytes_sent)},
                      {"bytes_received", std::to_string(d.bytes_received)}});
}

std::string text_of(const DryRun& d) {
  return fmt::format(
      "a round: {} steps of {}, about {} of training; {} of memory; {} sent, {} received\n",
      d.steps_per_round, format_duration(d.seconds_per_step), format_duration(d.seconds_per_round),
      format_bytes(double(d.peak_bytes)), format_bytes(double(d.bytes_sent)),
      format_bytes(double(d.bytes_received)));
}

// "unreadable images: 2, ..."; empty where nothing was found.
std::string sum_of(const std::vector<std::pair<std::string, size_t>>& findings) {
  std::vector<std::string> parts;
  for (const auto& [what, n] : findings)
    if (n > 0) parts.push_back(fmt::format("{}: {}", what, n));
  return joined(parts);
}

int verdict(const std::string& found) {
  if (!found.empty())
    throw UserError(fmt::format("check: {}; mend this before joining (nothing was sent)", found));
  return 0;
}

}  // namespace

int check_command(const CheckArguments& o) {
  Terminal terminal(o.global);
  const RunConfig config = open_config(o.config, o.set, terminal);
  const std::string client = o.client.empty() ? config.data.client : o.client;
  const Dataset data = open_client(config, client);

  auto progress = std::make_unique<Progress>(terminal, "reading", int64_t(data.samples.size()));
  int64_t shown = 0;
  const DataReport report = check_data(data, config.data.workers, [&](int64_t done, int64_t) {
    progress->advance(done - shown);
    shown = done;
  });
  progress->finish();
  progress.reset();

  std::vector<std::string> unreadable;
  for (const BadImage& b : report.unreadable) unreadable.push_back(b.id + ": " + b.reason);
  const auto samples = lines(report.samples), groups = lines(report.groups),
             duplicates = lines(report.duplicates);
  const auto missing = missing_splits(report, config.data.validation > 0);
  const std::string found = sum_of({{"missing splits", missing.size()},
                                    {"unreadable images", unreadable.size()},
                                    {"images in more than one split", samples.size()},
                                    {"groups in more than one split", groups.size()},
                                    {"exact copies in more than one split", duplicates.size()}});

  std::optional<DryRun> cost;
  if (config.model.weights.empty() || !std::filesystem::exists(config.model.weights)) {
    terminal.warning(fmt::format("model.weights: there is no '{}'; no estimate of a round's cost",
                                 config.model.weights));
  } else {
    int64_t train = 0;
    for (const auto& [name, splits] : report.counts)
      if (const auto it = splits.find("train"); it != splits.end())
        for (int64_t n : it->second) train += n;
    cost = dry_run(config, train);
  }

  if (o.global.json) {
    std::cout << json_object({{"clean", json_flag(found.empty())},
                              {"images", std::to_string(data.samples.size())},
                              {"classes", json_list(data.classes)},
                              {"counts", json_counts(report)},
                              {"missing", json_list(missing)},
                              {"unreadable", json_list(unreadable)},
                              {"samples_crossing", json_list(samples)},
                              {"groups_crossing", json_list(groups)},
                              {"duplicates", json_list(duplicates)},
                              {"cost", cost ? json_cost(*cost) : "null"}})
              << "\n";
    return verdict(found);
  }
  if (o.global.quiet) return verdict(found);
  if (!config.data.labels.empty()) {
    Table map({"this site's label", "class"}, {Align::left, Align::left});
    for (const auto& [own, name] : config.data.labels) map.add_row({own, name});
    std::cout << map.text() << "\n";
  }
  std::vector<std::string> header = {"client", "split"};
  header.insert(header.end(), data.classes.begin(), data.classes.end());
  header.push_back("all");
  Table table(header, {Align::left, Align::left});
  for (const auto& [name, splits] : report.counts)
    for (const auto& [split, counts] : splits) {
      std::vector<std::string> row = {name, split};
      int64_t total = 0;
      for (int64_t n : counts) {
        row.push_back(std::to_string(n));
        total += n;
      }
      row.push_back(std::to_string(total));
      table.add_row(row);
    }
  std::cout << table.text() << "\n";
  list("missing splits", missing);
  list("unreadable images", unreadable);
  list("images in more than one split", samples);
  list("groups in more than one split", groups);
  list("exact copies in more than one split", duplicates);
  if (cost) std::cout << text_of(*cost);
  if (found.empty()) std::cout << "no findings; nothing was sent\n";
  return verdict(found);
}

}  // namespace orthofed::cli
