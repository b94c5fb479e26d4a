#include "federation/report/summary.h"

#include <fmt/core.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "engine/io/files.h"
#include "engine/io/text.h"
#include "federation/report/scores.h"

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

json interval(const Interval& x) {
  return {{"value", x.value}, {"low", x.low}, {"high", x.high}};
}

json union_json(const RunSummary& summary) {
  const std::optional<UnionScores> scores = union_of_sites(summary);
  if (!scores) return nullptr;
  return {{"accuracy", interval(scores->accuracy)},
          {"balanced_accuracy", interval(scores->balanced_accuracy)}};
}

// ---- Reading ------------------------------------------------------------------------------------

// A value in a document, and where it is: "clients[1].train". `complaint` begins what is thrown.
class Place {
 public:
  Place(const std::string& complaint, const json& value, std::string name = "")
      : complaint_(&complaint), value_(&value), name_(std::move(name)) {}

  [[noreturn]] void refuse(const std::string& what) const {
    throw UserError(fmt::format("{}: {}{}", *complaint_, name_.empty() ? "it" : name_, what));
  }
  bool is_null() const { return value_->is_null(); }
  bool has(const char* key) const { return value_->is_object() && value_->contains(key); }
  Place at(const std::string& key) const {
    if (!value_->is_object()) refuse(" is not an object");
    const auto found = value_->find(key);
    const std::string name = name_.empty() ? key : name_ + "." + key;
    if (found == value_->end()) Place(*complaint_, *value_, name).refuse(" is missing");
    return {*complaint_, *found, name};
  }
  std::vector<Place> items() const {
    if (!value_->is_array()) refuse(" is not a list");
    std::vector<Place> all;
    for (const json& item : *value_)
      all.emplace_back(*complaint_, item, fmt::format("{}[{}]", name_, all.size()));
    return all;
  }
  std::string text() const {
    if (!value_->is_string()) refuse(" is not a text");
    return value_->get<std::string>();
  }
  template <class E>
  E choice() const {
    const auto value = value_of<E>(text());
    if (!value)
      refuse(" is not one of " + joined({std::begin(Words<E>::list), std::end(Words<E>::list)}));
    return *value;
  }
  template <class Int = int64_t>
  Int count() const {
    const bool fits = value_->is_number_unsigned() ? std::in_range<Int>(value_->get<uint64_t>())
                                                   : value_->is_number_integer() &&
                                                         std::in_range<Int>(value_->get<int64_t>());
    if (!fits) refuse(" is not a count");
    return value_->get<Int>();
  }
  double number() const {  // null: not defined
    if (value_->is_null()) return kNan;
    if (!value_->is_number()) refuse(" is not a number");
    return value_->get<double>();
  }
  std::vector<int64_t> counts() const {
    std::vector<int64_t> all;
    for (const Place& item : items()) all.push_back(item.count());
    return all;
  }

 private:
  const std::string* complaint_;
  const json* value_;
  std::string name_;
};

// What put_scores has written beside the number of images.
std::optional<SiteMetrics> scores_from(const Place& from, int64_t samples) {
  if (!from.has("classes_scored")) return std::nullopt;
  SiteMetrics m;
  m.samples = samples;
  m.accuracy = from.at("accuracy").number();
  m.balanced_accuracy = from.at("balanced_accuracy").number();
  m.auroc = from.at("auroc").number();
  m.classes_scored = from.at("classes_scored").counts();
  if (from.has("confusion"))
    for (const Place& row : from.at("confusion").items()) m.confusion.push_back(row.counts());
  for (const std::vector<int64_t>& row : m.confusion)
    if (row.size() != m.confusion.size()) from.at("confusion").refuse(" is not square");
  return m;
}

TimeSplit time_from(const Place& from) {
  TimeSplit time;
  for (const Activity a : kActivities) time[a] = from.at(name_of(a)).number();
  return time;
}

ClientSummary client_from(const Place& from) {
  ClientSummary c;
  c.name = from.at("name").text();
  c.train = from.at("train").count();
  const int64_t test = from.at("test").is_null() ? 0 : from.at("test").count();
  c.personal = scores_from(from, test);
  c.general = scores_from(from.at("general"), test);
  c.bytes_sent = from.at("bytes_sent").count();
  c.bytes_received = from.at("bytes_received").count();
  c.train_images_per_second = from.at("train_images_per_second").number();
  if (from.has("time") && !from.at("time").is_null()) c.time = time_from(from.at("time"));
  return c;
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
      {"accuracy", mean_over_clients(summary, &ClientSummary::personal, &SiteMetrics::accuracy)},
      {"balanced_accuracy",
       mean_over_clients(summary, &ClientSummary::personal, &SiteMetrics::balanced_accuracy)},
      {"auroc", mean_over_clients(summary, &ClientSummary::personal, &SiteMetrics::auroc)}};
  const json document = {
      {"method", summary.method},
      {"rounds", summary.rounds},
      {"seed", summary.seed},
      {"device", summary.device},
      {"precision", summary.precision},
      {"threads", summary.threads},
      {"base_model", {{"name", summary.base_name}, {"sha256", summary.base_sha256}}},
      {"head", word(summary.head)},
      {"general_head", summary.head == HeadKind::personal ? "each client's own" : "shared"},
      {"classes", summary.classes},
      {"clients", clients},
      {"mean", mean},
      {"union", union_json(summary)},
      {"wall_seconds", summary.wall_seconds},
      {"time", time_of(summary.time)},
      {"time_by_round", rounds}};
  return document.dump(2) + "\n";
}

void write_summary(const std::string& path, const RunSummary& summary) {
  write_file(path, to_json(summary));
}

RunSummary read_summary(const std::string& path) {
  const json document = json::parse(read_text(path), nullptr, false);
  const std::string complaint = path + ": not a run's summary";
  const Place from(complaint, document);
  if (document.is_discarded()) from.refuse(" is not valid JSON");
  RunSummary s;
  s.method = from.at("method").text();
  s.rounds = from.at("rounds").count();
  s.seed = from.at("seed").count<uint64_t>();
  s.device = from.at("device").text();
  s.precision = from.at("precision").text();
  s.threads = from.at("threads").count();
  s.base_name = from.at("base_model").at("name").text();
  s.base_sha256 = from.at("base_model").at("sha256").text();
  s.head = from.at("head").choice<HeadKind>();
  for (const Place& name : from.at("classes").items()) s.classes.push_back(name.text());
  for (const Place& client : from.at("clients").items()) s.clients.push_back(client_from(client));
  s.wall_seconds = from.at("wall_seconds").number();
  // Runs of earlier versions did not measure these.
  if (from.has("time")) s.time = time_from(from.at("time"));
  if (from.has("time_by_round"))
    for (const Place& time : from.at("time_by_round").items())
      s.time_by_round.push_back(time_from(time));
  return s;
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
        fmt::format("cannot write {}: {}: choose another folder", path_, std::strerror(errno)));
}

void MetricsLog::write(const ClientRound& round) {
  file_ << to_json_line(round) << std::flush;
  if (!file_)
    throw UserError(fmt::format("cannot write {}: {}: free some space or choose another folder",
                                path_, std::strerror(errno)));
}

std::vector<std::map<std::string, TimeSplit>> read_client_times(const std::string& path,
                                                                int64_t rounds) {
  std::vector<std::map<std::string, TimeSplit>> times(static_cast<size_t>(rounds));
  std::istringstream lines(read_text(path));
  int64_t number = 0;
  for (std::string text; std::getline(lines, text);) {
    const json line = json::parse(text, nullptr, false);
    const std::string complaint = fmt::format("{}:{}: not a round of a run", path, ++number);
    const Place from(complaint, line);
    if (line.is_discarded()) from.refuse(" is not valid JSON");
    if (!from.has("time")) continue;
    const int64_t round = from.at("round").count();
    if (round < 0 || round >= rounds) from.at("round").refuse(" is none of the run's rounds");
    times[size_t(round)][from.at("client").text()] = time_from(from.at("time"));
  }
  return times;
}

}  // namespace orthofed
