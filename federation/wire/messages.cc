#include "federation/wire/messages.h"

#include <fmt/core.h>

#include <limits>

#include "engine/io/safetensors.h"
#include "federation/combine/average.h"
#include "federation/wire/manifest.h"
#include "models/config/names.h"

namespace orthofed {
namespace {

using nlohmann::json;

constexpr int64_t kMaxCount = int64_t{1} << 53;  // exact in JSON everywhere
constexpr size_t kMaxSchema = 65536;
constexpr size_t kMaxPenalties = 64;
constexpr size_t kMaxSettings = 256;

TensorMap read_tensors(const Frame& frame, const Expected& expected, const std::string& where) {
  TensorMap tensors;
  try {
    tensors = decode_safetensors(frame.tensors, where).tensors;
  } catch (const UserError& e) {
    throw ProtocolError(printable(e.what()));
  }
  check_tensors(tensors, expected.schema, where);
  return tensors;
}

// ---- One pair of functions a message ------------------------------------------------------------

json manifest_of(const Hello& m) {
  return {{"client", m.client},
          {"method", m.method},
          {"base_sha256", m.base_sha256},
          {"classes_sha256", m.classes_sha256},
          {"schema", m.schema}};
}

void read(Fields& f, Hello& m) {
  m.client = f.text("client");
  if (!is_client_name(m.client)) f.fail("client", "is not a client name");
  m.method = f.text("method");
  m.base_sha256 = f.sha256("base_sha256");
  m.classes_sha256 = f.sha256("classes_sha256");
  m.schema = f.texts("schema", kMaxSchema);
}

constexpr double kMaxSeconds = 1e9;

json manifest_of(const Welcome& m) {
  return {{"rounds", m.rounds},
          {"join_seconds", m.join_seconds},
          {"answer_seconds", m.answer_seconds},
          {"settings", m.settings}};
}

void read(Fields& f, Welcome& m) {
  m.rounds = f.integer("rounds", 1, kMaxCount);
  m.join_seconds = f.number("join_seconds", 0, kMaxSeconds);
  m.answer_seconds = f.number("answer_seconds", 0, kMaxSeconds);
  m.settings = f.texts("settings", kMaxSettings);
}

json manifest_of(const Refuse& m) {
  return {{"reason", printable(m.reason)}};
}

void read(Fields& f, Refuse& m) {
  m.reason = printable(f.text("reason"));
}

json manifest_of(const Round& m) {
  return {{"round", m.round}, {"evaluate", m.evaluate}};
}

void read(Fields& f, Round& m) {
  m.round = f.integer("round", 0, kMaxCount);
  m.evaluate = f.flag("evaluate");
}

json manifest_of(const TimeSplit& time) {
  json manifest;
  for (const Activity a : kActivities) manifest[name_of(a)] = time[a];
  return manifest;
}

TimeSplit read_time(const json& object, const std::string& where, const char* path) {
  Fields f(object, where, path);
  TimeSplit time;
  for (const Activity a : kActivities) time[a] = f.number(name_of(a), 0, kMaxSeconds);
  f.done();
  return time;
}

json manifest_of(const Update& m) {
  json manifest = {{"round", m.round}, {"samples", m.samples}};
  if (m.report)
    manifest["report"] = {{"images_per_second", m.report->images_per_second},
                          {"train_loss", m.report->train_loss},
                          {"penalties", m.report->penalties},
                          {"time", manifest_of(m.report->time)}};
  return manifest;
}

constexpr double kAny = std::numeric_limits<double>::max();

void read(Fields& f, Update& m, const std::string& where) {
  m.round = f.integer("round", 0, kMaxCount);
  m.samples = f.integer("samples", 1, kMaxSamples);
  if (!f.has("report")) return;
  Fields report(f.at("report"), where, "report");
  m.report.emplace();
  m.report->images_per_second = report.number_or_nan("images_per_second", 0, kAny);
  m.report->train_loss = report.number("train_loss", -kAny, kAny);
  const json& kinds = report.object("penalties", kMaxPenalties);
  Fields penalties(kinds, where, "report.penalties");
  for (const auto& [kind, value] : kinds.items())
    m.report->penalties[printable(kind)] = penalties.number_or_nan(kind.c_str(), -kAny, kAny);
  m.report->time = read_time(report.at("time"), where, "report.time");
  report.done();
}

json manifest_of(const Final& m) {
  return {{"round", m.round}};
}

void read(Fields& f, Final& m) {
  m.round = f.integer("round", 1, kMaxCount);
}

json manifest_of(const SiteMetrics& m, ShareMetrics share) {
  json manifest = {{"samples", m.samples},
                   {"accuracy", m.accuracy},
                   {"balanced_accuracy", m.balanced_accuracy},
                   {"auroc", m.auroc},
                   {"classes_scored", m.classes_scored}};
  if (share == ShareMetrics::confusion) manifest["confusion"] = m.confusion;
  return manifest;
}

SiteMetrics read_scores(const json& object, const std::string& where, const char* path,
                        ShareMetrics share, size_t classes) {
  Fields f(object, where, path);
  SiteMetrics m;
  m.samples = f.integer("samples", 0, kMaxCount);
  m.accuracy = f.number_or_nan("accuracy", 0, 1);
  m.balanced_accuracy = f.number_or_nan("balanced_accuracy", 0, 1);
  m.auroc = f.number_or_nan("auroc", 0, 1);
  for (const json& value : f.array("classes_scored", classes)) {
    const int64_t c = f.integer_of(value, f.path("classes_scored"), 0, int64_t(classes) - 1);
    if (!m.classes_scored.empty() && c <= m.classes_scored.back())
      f.fail(f.path("classes_scored"), "is not ascending");
    m.classes_scored.push_back(c);
  }
  if (share == ShareMetrics::confusion) {
    const std::string field = f.path("confusion");
    const json& rows = f.array("confusion", classes);
    int64_t total = 0;
    bool square = rows.size() == classes;
    for (const json& row : rows) {
      square = square && row.is_array() && row.size() == classes;
      if (!square) break;
      auto& counts = m.confusion.emplace_back();
      for (const json& count : row) {
        counts.push_back(f.integer_of(count, field, 0, m.samples - total));
        total += counts.back();
      }
    }
    if (!square) f.fail(field, fmt::format("is not {0} x {0}", classes));
    if (total != m.samples) f.fail(field, fmt::format("sums to {}, not to samples", total));
  }
  f.done();
  return m;
}

json manifest_of(const Metrics& m) {
  json manifest = {{"round", m.round}, {"share", word(m.share)}};
  if (m.share != ShareMetrics::none) {
    OF_CHECK(m.evaluation.has_value(), "scores are shared but absent");
    manifest["personal"] = manifest_of(m.evaluation->personal, m.share);
    manifest["general"] = manifest_of(m.evaluation->general, m.share);
    manifest["time"] = manifest_of(m.time);
  }
  return manifest;
}

void read(Fields& f, Metrics& m, const std::string& where, size_t classes) {
  m.round = f.integer("round", 0, kMaxCount);
  const auto share = value_of<ShareMetrics>(f.text("share"));
  if (!share) f.fail("share", "is not none, scalars or confusion");
  m.share = *share;
  if (m.share == ShareMetrics::none) return;
  m.evaluation = SiteEvaluation{read_scores(f.at("personal"), where, "personal", m.share, classes),
                                read_scores(f.at("general"), where, "general", m.share, classes)};
  m.time = read_time(f.at("time"), where, "time");
}

json manifest_of(const Bye&) {
  return json::object();
}

void read(Fields&, Bye&) {}

json manifest_of(const Abort& m) {
  return {{"reason", printable(m.reason)}};
}

void read(Fields& f, Abort& m) {
  m.reason = printable(f.text("reason"));
}

}  // namespace

Bytes encode(const Message& message) {
  return std::visit(
      [](const auto& m) {
        using M = std::decay_t<decltype(m)>;
        Bytes tensors;
        if constexpr (carries_tensors(M::type)) tensors = encode_safetensors(m.tensors);
        return encode_frame(M::type, manifest_of(m).dump(), tensors);
      },
      message);
}

Message decode(const Frame& frame, const Expected& expected) {
  const std::string where = fmt::format("{}{}{} frame", expected.peer,
                                        expected.peer.empty() ? "" : ": ", name_of(frame.type));
  const json manifest = parse_manifest(frame.manifest, where);
  Fields fields(manifest, where);
  const auto finish = [&](auto m) -> Message {
    if constexpr (std::is_same_v<decltype(m), Update>)
      read(fields, m, where);
    else if constexpr (std::is_same_v<decltype(m), Metrics>)
      read(fields, m, where, expected.classes);
    else
      read(fields, m);
    fields.done();
    if constexpr (carries_tensors(decltype(m)::type))
      m.tensors = read_tensors(frame, expected, where);
    return m;
  };
  switch (frame.type) {
    case FrameType::hello:
      return finish(Hello{});
    case FrameType::welcome:
      return finish(Welcome{});
    case FrameType::refuse:
      return finish(Refuse{});
    case FrameType::round:
      return finish(Round{});
    case FrameType::update:
      return finish(Update{});
    case FrameType::final:
      return finish(Final{});
    case FrameType::metrics:
      return finish(Metrics{});
    case FrameType::bye:
      return finish(Bye{});
    case FrameType::abort:
      return finish(Abort{});
  }
  throw ProtocolError(where + ": type is unknown");
}

}  // namespace orthofed
