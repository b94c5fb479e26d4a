#include "federation/report/summary.h"

#include <fmt/core.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "engine/io/files.h"
#include "models/scoring/metrics.h"

namespace orthofed {
namespace {

using json = nlohmann::ordered_json;  // keys in the order a person reads them; NaN is written null

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

void put_scores(json& to, const std::optional<SiteMetrics>& m) {
  to["accuracy"] = m ? m->accuracy : kNan;
  to["balanced_accuracy"] = m ? m->balanced_accuracy : kNan;
  to["auroc"] = m ? m->auroc : kNan;
  if (!m) return;
  to["classes_scored"] = m->classes_scored;
  if (!m->confusion.empty()) to["confusion"] = m->confusion;
}

json scores(const std::optional<SiteMetrics>& m) {
  json object;
  put_scores(object, m);
  return object;
}

json time_of(const TimeSplit& time) {
  json object = {{"total", time.total()}};
  for (const Activity a : kActivities) object[name_of(a)] = time[a];
  return object;
}

json test_size(const std::optional<SiteMetrics>& m) {
  return m ? json(m->samples) : json(nullptr);
}

double mean_over_clients(const RunSummary& summary, double SiteMetrics::*score) {
  double sum = 0;
  int64_t n = 0;
  for (const ClientSummary& client : summary.clients) {
    if (!client.personal || std::isnan((*client.personal).*score)) continue;
    sum += (*client.personal).*score;
    ++n;
  }
  return n == 0 ? kNan : sum / double(n);
}

json interval(const Interval& x) {
  return {{"value", x.value}, {"low", x.low}, {"high", x.high}};
}

// Null unless every client shared its confusion matrix.
json union_of_sites(const RunSummary& summary) {
  std::vector<Confusion> sites;
  for (const ClientSummary& client : summary.clients)
    if (client.personal && !client.personal->confusion.empty())
      sites.push_back(client.personal->confusion);
  if (sites.empty() || sites.size() != summary.clients.size()) return nullptr;
  const UnionScores scores = union_scores(sites, summary.seed);
  return {{"accuracy", interval(scores.accuracy)},
          {"balanced_accuracy", interval(scores.balanced_accuracy)}};
}

}  // namespace

RunSummary summarize(const RunConfig& config, const Agreement& agreement,
                     const FederationResult& result, const std::string& base_name,
                     const std::string& device, const std::string& precision) {
  RunSummary summary;
  summary.method = config.method;
  summary.rounds = config.rounds;
  summary.seed = config.seed;
  summary.device = device;
  summary.precision = precision;
  summary.threads = config.threads;
  summary.base_name = base_name;
  summary.base_sha256 = agreement.base_sha256;
  summary.head = config.model.head;
  summary.classes = agreement.classes;
  summary.wall_seconds = result.wall_seconds;
  summary.time = result.time;
  summary.time_by_round = result.time_by_round;
  for (const ClientResult& r : result.clients) {
    ClientSummary& client = summary.clients.emplace_back();
    client.name = r.client;
    client.train = r.samples;
    if (r.evaluation) {
      client.personal = r.evaluation->personal;
      if (r.evaluation->general.samples > 0) client.general = r.evaluation->general;
    }
    client.bytes_sent = r.bytes_sent;
    client.bytes_received = r.bytes_received;
    client.train_images_per_second = r.images_per_second;
    client.time = r.time;
  }
  return summary;
}

std::string to_json(const RunSummary& summary) {
  json clients = json::array();
  for (const ClientSummary& c : summary.clients) {
    json client = {{"name", c.name}, {"train", c.train}, {"test", test_size(c.personal)}};
    put_scores(client, c.personal);
    client["general"] = scores(c.general);
    client["bytes_sent"] = c.bytes_sent;
    client["bytes_received"] = c.bytes_received;
    client["train_images_per_second"] = c.train_images_per_second;
    client["time"] = c.time ? time_of(*c.time) : json(nullptr);
    clients.push_back(std::move(client));
  }
  json rounds = json::array();
  for (const TimeSplit& time : summary.time_by_round) rounds.push_back(time_of(time));
  const json mean = {
      {"accuracy", mean_over_clients(summary, &SiteMetrics::accuracy)},
      {"balanced_accuracy", mean_over_clients(summary, &SiteMetrics::balanced_accuracy)},
      {"auroc", mean_over_clients(summary, &SiteMetrics::auroc)}};
  const json document = {
      {"method", summary.method},
      {"rounds", summary.rounds},
      {"seed", summary.seed},
      {"device", summary.device},
      {"precision", summary.precision},
      {"threads", summary.threads},
      {"base_model", {{"name", summary.base_name}, {"sha256", summary.base_sha256}}},
      {"head", summary.head},
      {"general_head", summary.head == "personal" ? "each client's own" : "shared"},
      {"classes", summary.classes},
      {"clients", clients},
      {"mean", mean},
      {"union", union_of_sites(summary)},
      {"wall_seconds", summary.wall_seconds},
      {"time", time_of(summary.time)},
      {"time_by_round", rounds}};
  return document.dump(2) + "\n";
}

void write_summary(const std::string& path, const RunSummary& summary) {
  write_file(path, to_json(summary));
}

std::string to_json_line(const ClientRound& r) {
  json line = {{"round", r.round},           {"client", r.client},
               {"train", r.samples},         {"seconds", r.seconds},
               {"bytes_sent", r.bytes_sent}, {"bytes_received", r.bytes_received}};
  if (r.report) {
    line["train_images_per_second"] = r.report->images_per_second;
    line["train_loss"] = r.report->train_loss;
    line["penalties"] = json(r.report->penalties);
  }
  if (r.time) line["time"] = time_of(*r.time);
  if (r.evaluation) {
    line["test"] = r.evaluation->personal.samples;
    put_scores(line, r.evaluation->personal);
    line["general"] = scores(r.evaluation->general);
  }
  return line.dump() + "\n";
}

MetricsLog::MetricsLog(const std::string& path) : path_(path), file_(path, std::ios::trunc) {
  if (!file_)
    throw UserError(
        fmt::format("cannot write {}: {}: choose another --out", path_, std::strerror(errno)));
}

void MetricsLog::write(const ClientRound& round) {
  file_ << to_json_line(round) << std::flush;
  if (!file_)
    throw UserError(fmt::format("cannot write {}: {}: free some space or choose another --out",
                                path_, std::strerror(errno)));
}

}  // namespace orthofed
