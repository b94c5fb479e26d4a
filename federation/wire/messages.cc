#include "federation/wire/messages.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/io/safetensors.h"
#include "engine/io/sha256.h"
#include "federation/combine/average.h"
#include "models/config/names.h"

namespace orthofed {
namespace {

using nlohmann::json;

constexpr char kMagic[4] = {'O', 'F', 'E', 'D'};
constexpr size_t kDigestOffset = 24;  // the header's fields before its digest
constexpr size_t kDigestBytes = 64;
static_assert(kDigestOffset + kDigestBytes == kHeaderBytes);

constexpr int64_t kMaxCount = int64_t{1} << 53;  // exact in JSON everywhere
constexpr size_t kMaxSchema = 65536;
constexpr size_t kMaxPenalties = 64;
constexpr size_t kMaxSettings = 256;
constexpr size_t kMaxText = 500;

template <class T>
void store(std::byte* to, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) to[i] = std::byte(uint8_t(value >> (8 * i)));
}

template <class T>
T load(const std::byte* from) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value = T(value | T(T(from[i]) << (8 * i)));
  return value;
}

std::string digest(std::span<const std::byte> fields, std::string_view manifest,
                   std::span<const std::byte> tensors) {
  Sha256 sha;
  sha.update(fields.data(), fields.size());
  sha.update(manifest.data(), manifest.size());
  sha.update(tensors.data(), tensors.size());
  return sha.hex();
}

bool is_digest(std::string_view text) {
  return text.size() == kDigestBytes &&
         text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

// ---- Reading a manifest -------------------------------------------------------------------------

// A JSON object whose keys are taken one by one; done() refuses what is left over.
class Fields {
 public:
  Fields(const json& object, std::string where, std::string path = {})
      : object_(object), where_(std::move(where)), path_(std::move(path)) {
    if (!object.is_object()) fail(path_.empty() ? "manifest" : path_, "is not an object");
  }

  [[noreturn]] void fail(std::string_view field, std::string_view what) const {
    throw ProtocolError(fmt::format("{}: {} {}", where_, printable(field), what));
  }
  bool has(const char* key) const { return object_.contains(key); }
  std::string path(std::string_view key) const {
    return path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
  }

  const json& at(const char* key) {
    const auto it = object_.find(key);
    if (it == object_.end()) fail(path(key), "is missing");
    taken_.insert(key);
    return *it;
  }
  int64_t integer(const char* key, int64_t low, int64_t high) {
    return integer_of(at(key), path(key), low, high);
  }
  int64_t integer_of(const json& value, const std::string& field, int64_t low, int64_t high) const {
    if (!value.is_number_integer()) fail(field, "is not an integer");
    const bool too_large = value.is_number_unsigned() && value.get<uint64_t>() > uint64_t(high);
    if (too_large || value.get<int64_t>() < low)
      fail(field, fmt::format("= {} is outside {} .. {}", value.dump(), low, high));
    return value.get<int64_t>();
  }
  double number(const char* key, double low, double high) {
    const json& value = at(key);
    if (!value.is_number()) fail(path(key), "is not a number");
    const double x = value.get<double>();
    if (!(x >= low && x <= high))
      fail(path(key), fmt::format("= {} is outside {} .. {}", x, low, high));
    return x;
  }
  double number_or_nan(const char* key, double low, double high) {
    const json& value = at(key);
    return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : number(key, low, high);
  }
  bool flag(const char* key) {
    const json& value = at(key);
    if (!value.is_boolean()) fail(path(key), "is not true or false");
    return value.get<bool>();
  }
  std::string text(const char* key) {
    const json& value = at(key);
    if (!value.is_string()) fail(path(key), "is not a string");
    const auto& s = value.get_ref<const std::string&>();
    if (s.size() > kMaxText) fail(path(key), fmt::format("is longer than {} bytes", kMaxText));
    return s;
  }
  std::string sha256(const char* key) {
    std::string s = text(key);
    if (!is_digest(s)) fail(path(key), "is not a SHA-256 in lower-case hexadecimal");
    return s;
  }
  const json& object(const char* key, size_t max_entries) {
    const json& value = at(key);
    if (!value.is_object()) fail(path(key), "is not an object");
    if (value.size() > max_entries)
      fail(path(key), fmt::format("has more than {} entries", max_entries));
    return value;
  }
  std::map<std::string, std::string> texts(const char* key, size_t max_entries) {
    std::map<std::string, std::string> texts;
    for (const auto& [name, value] : object(key, max_entries).items()) {
      if (!value.is_string()) fail(path(key), "holds what is not a string");
      texts[name] = value.get<std::string>();
    }
    return texts;
  }
  const json& array(const char* key, size_t max_entries) {
    const json& value = at(key);
    if (!value.is_array()) fail(path(key), "is not an array");
    if (value.size() > max_entries)
      fail(path(key), fmt::format("has more than {} entries", max_entries));
    return value;
  }
  void done() const {
    for (const auto& [key, value] : object_.items())
      if (!taken_.count(key)) fail(path(key), "is not a key of this frame");
  }

 private:
  const json& object_;
  std::string where_, path_;
  std::set<std::string> taken_;
};

// JSON leaves duplicate keys open; two readers that pick differently would see two messages.
json parse_manifest(const std::string& text, const std::string& where) {
  std::vector<std::set<std::string>> keys;
  std::string duplicate;
  const auto watch = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(value.get<std::string>()).second)
      duplicate = value.get<std::string>();
    return true;
  };
  json manifest;
  try {
    manifest = json::parse(text, watch);
  } catch (const json::exception& e) {
    throw ProtocolError(fmt::format("{}: manifest is not JSON: {}", where, printable(e.what())));
  }
  if (!duplicate.empty())
    throw ProtocolError(
        fmt::format("{}: manifest has the key '{}' twice", where, printable(duplicate)));
  return manifest;
}

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

// ---- Frames -------------------------------------------------------------------------------------

const char* name_of(FrameType type) {
  switch (type) {
    case FrameType::hello:
      return "Hello";
    case FrameType::welcome:
      return "Welcome";
    case FrameType::refuse:
      return "Refuse";
    case FrameType::round:
      return "Round";
    case FrameType::update:
      return "Update";
    case FrameType::final:
      return "Final";
    case FrameType::metrics:
      return "Metrics";
    case FrameType::bye:
      return "Bye";
    case FrameType::abort:
      return "Abort";
  }
  return "?";
}

FrameHeader decode_header(std::span<const std::byte, kHeaderBytes> bytes, size_t max_tensor_bytes,
                          std::string_view peer) {
  const auto fail = [&](const std::string& what) -> void {
    throw ProtocolError(fmt::format("{}: frame header: {}", peer, what));
  };
  if (std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0)
    fail("magic is not OFED: the peer does not speak this protocol");
  const auto version = load<uint16_t>(bytes.data() + 4);
  if (version != kProtocolVersion)
    fail(fmt::format("version {} where this program speaks {}: both sides need the same release",
                     version, kProtocolVersion));
  const auto type = load<uint16_t>(bytes.data() + 6);
  if (type < uint16_t(FrameType::hello) || type > uint16_t(FrameType::abort))
    fail(fmt::format("type {} is unknown", type));
  if (const auto flags = load<uint32_t>(bytes.data() + 8); flags != 0)
    fail(fmt::format("flags {:#x} are not 0", flags));

  FrameHeader header;
  header.type = FrameType(type);
  const auto manifest = load<uint32_t>(bytes.data() + 12);
  if (manifest > kMaxManifestBytes)
    fail(fmt::format("manifest length {} is above the limit of {}", manifest, kMaxManifestBytes));
  const auto tensors = load<uint64_t>(bytes.data() + 16);
  if (!carries_tensors(header.type) && tensors != 0)
    fail(fmt::format("tensor length {} in a {} frame, which carries none", tensors,
                     name_of(header.type)));
  if (tensors > max_tensor_bytes)
    fail(fmt::format("tensor length {} is above the limit of {}{}", tensors, max_tensor_bytes,
                     max_tensor_bytes ? " (federation.max_frame_mb)" : ""));
  header.manifest_bytes = manifest;
  header.tensor_bytes = size_t(tensors);
  header.sha256.assign(reinterpret_cast<const char*>(bytes.data()) + kDigestOffset, kDigestBytes);
  if (!is_digest(header.sha256)) fail("sha256 is not lower-case hexadecimal");
  return header;
}

void verify_digest(std::span<const std::byte, kHeaderBytes> bytes, const Frame& frame,
                   std::string_view peer) {
  const std::string computed = digest(bytes.first(kDigestOffset), frame.manifest, frame.tensors);
  if (std::memcmp(bytes.data() + kDigestOffset, computed.data(), kDigestBytes) != 0)
    throw ProtocolError(fmt::format("{}: {} frame: sha256 does not match: damaged on the way", peer,
                                    name_of(frame.type)));
}

Bytes encode_frame(FrameType type, std::string_view manifest, std::span<const std::byte> tensors) {
  OF_CHECK(manifest.size() <= kMaxManifestBytes, "manifest above the limit");
  Bytes bytes(kHeaderBytes + manifest.size() + tensors.size());
  std::memcpy(bytes.data(), kMagic, sizeof kMagic);
  store<uint16_t>(bytes.data() + 4, kProtocolVersion);
  store<uint16_t>(bytes.data() + 6, uint16_t(type));
  store<uint32_t>(bytes.data() + 8, 0);
  store<uint32_t>(bytes.data() + 12, uint32_t(manifest.size()));
  store<uint64_t>(bytes.data() + 16, tensors.size());
  const std::string sha =
      digest(std::span<const std::byte>(bytes).first(kDigestOffset), manifest, tensors);
  std::memcpy(bytes.data() + kDigestOffset, sha.data(), kDigestBytes);
  std::memcpy(bytes.data() + kHeaderBytes, manifest.data(), manifest.size());
  std::copy(tensors.begin(), tensors.end(),
            bytes.begin() + std::ptrdiff_t(kHeaderBytes + manifest.size()));
  return bytes;
}

std::optional<Frame> FrameReader::next() {
  if (rest_.empty()) return std::nullopt;
  if (rest_.size() < kHeaderBytes)
    throw ProtocolError(fmt::format("{}: stream ends inside a frame header", peer_));
  const auto header_bytes = rest_.first<kHeaderBytes>();
  const FrameHeader header = decode_header(header_bytes, max_tensor_bytes_, peer_);
  rest_ = rest_.subspan(kHeaderBytes);
  if (rest_.size() < header.manifest_bytes + header.tensor_bytes)
    throw ProtocolError(
        fmt::format("{}: stream ends inside a {} frame", peer_, name_of(header.type)));
  Frame frame;
  frame.type = header.type;
  frame.manifest.assign(reinterpret_cast<const char*>(rest_.data()), header.manifest_bytes);
  rest_ = rest_.subspan(header.manifest_bytes);
  frame.tensors.assign(rest_.begin(), rest_.begin() + std::ptrdiff_t(header.tensor_bytes));
  rest_ = rest_.subspan(header.tensor_bytes);
  verify_digest(header_bytes, frame, peer_);
  return frame;
}

// ---- Messages -----------------------------------------------------------------------------------

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

Schema schema_of(const TensorMap& tensors) {
  Schema schema;
  for (const auto& [name, tensor] : tensors)
    schema[name] = name_of(tensor.dtype()) + tensor.shape().str();
  return schema;
}

std::string classes_digest(const std::vector<std::string>& classes) {
  return sha256(json(classes).dump());
}

void check_tensors(const TensorMap& tensors, const Schema& schema, std::string_view where) {
  const auto fail = [&](const std::string& name, const std::string& what) -> void {
    throw ProtocolError(fmt::format("{}: tensor '{}' {}", where, printable(name), what));
  };
  for (const auto& [name, type] : schema)
    if (!tensors.count(name)) fail(name, "is missing");
  for (const auto& [name, type] : schema_of(tensors)) {
    const auto agreed = schema.find(name);
    if (agreed == schema.end()) fail(name, "is not in the agreed schema");
    if (agreed->second != type)
      fail(name, fmt::format("is {}, agreed was {}", type, agreed->second));
  }
  for (const auto& [name, tensor] : tensors)
    if (!tensor.all_finite()) fail(name, "holds NaN or infinity: training diverged");
}

std::string printable(std::string_view text) {
  std::string s(text.substr(0, kMaxText));
  for (char& c : s)
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) > 0x7e) c = '?';
  return s;
}

}  // namespace orthofed
