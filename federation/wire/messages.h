// The frames of the round protocol (docs/protocol.md): what they look like as bytes, and what they
// say as structs. Pure functions of memory, no sockets.
//
//   frame = header[88] | manifest (JSON) | tensors (safetensors, or nothing)
//   header: "OFED" | u16 version | u16 type | u32 flags = 0 | u32 manifest bytes |
//           u64 tensor bytes | sha256 of the 24 bytes before it, the manifest and the tensors (hex)
//
// Integers are little-endian. Reading trusts nothing: every field of the header, every key of the
// manifest and every tensor is checked, and a ProtocolError names the peer, the frame and the
// field.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "federation/site.h"
#include "models/config/config.h"

namespace orthofed {

// A federation that failed: a peer that died, took too long or sent what it must not.
struct FederationError : Error {
  using Error::Error;
};
struct ProtocolError : FederationError {
  using FederationError::FederationError;
};

using Bytes = std::vector<std::byte>;
using Schema = std::map<std::string, std::string>;    // tensor -> "f32[8, 192]"
using Settings = std::map<std::string, std::string>;  // configuration key -> value as TOML

// ---- Frames -------------------------------------------------------------------------------------

constexpr uint16_t kProtocolVersion = 2;
constexpr size_t kHeaderBytes = 88;
constexpr size_t kMaxManifestBytes = size_t{1} << 20;

enum class FrameType : uint16_t {
  hello = 1,    // client -> server: who I am and what I hold
  welcome = 2,  // server -> client: you take part; what follows
  refuse = 3,   // server -> client: you do not take part, because
  round = 4,    // server -> client: train from these tensors
  update = 5,   // client -> server: the tensors after training, and n_i
  final = 6,    // server -> client: the last average; finish and evaluate
  metrics = 7,  // client -> server: scores, as far as the client shares them
  bye = 8,      // server -> client: the run is complete
  abort = 9,    // both: the run ends here, because
};
const char* name_of(FrameType type);
constexpr bool carries_tensors(FrameType type) {
  return type == FrameType::round || type == FrameType::update || type == FrameType::final;
}

struct FrameHeader {
  FrameType type{};
  size_t manifest_bytes = 0, tensor_bytes = 0;
  std::string sha256;  // stated by the sender
};

struct Frame {
  FrameType type{};
  std::string manifest;  // JSON
  Bytes tensors;
  size_t size() const { return kHeaderBytes + manifest.size() + tensors.size(); }
};

// Checks all but the digest, before anything of the stated size is allocated. `max_tensor_bytes` is
// what this peer may send now; frames of a type without tensors may carry none at any time.
FrameHeader decode_header(std::span<const std::byte, kHeaderBytes> bytes, size_t max_tensor_bytes,
                          std::string_view peer);
// Recomputes the digest of `header` (as received) and the body.
void verify_digest(std::span<const std::byte, kHeaderBytes> bytes, const Frame& frame,
                   std::string_view peer);
Bytes encode_frame(FrameType type, std::string_view manifest, std::span<const std::byte> tensors);

// Walks the frames in a recorded stream, with the checks above. nullopt at its end; a stream that
// ends inside a frame is an error.
class FrameReader {
 public:
  FrameReader(std::span<const std::byte> stream, size_t max_tensor_bytes, std::string peer)
      : rest_(stream), max_tensor_bytes_(max_tensor_bytes), peer_(std::move(peer)) {}
  std::optional<Frame> next();

 private:
  std::span<const std::byte> rest_;
  size_t max_tensor_bytes_;
  std::string peer_;
};

// ---- Messages -----------------------------------------------------------------------------------

struct Hello {
  static constexpr FrameType type = FrameType::hello;
  std::string client, method, base_sha256;
  std::string classes_sha256;  // classes_digest
  Schema schema;
};

struct Welcome {
  static constexpr FrameType type = FrameType::welcome;
  int64_t rounds = 0;
  double join_seconds = 0;    // how long the first round may be away
  double answer_seconds = 0;  // the longest time the server gives a client for one answer
  Settings settings = {};     // what the client must have set alike; it checks that itself
};

struct Refuse {
  static constexpr FrameType type = FrameType::refuse;
  std::string reason;
};

struct Round {
  static constexpr FrameType type = FrameType::round;
  int64_t round = 0;      // 0 .. rounds-1
  bool evaluate = false;  // score these tensors (Metrics) before training
  TensorMap tensors;
};

struct Update {
  static constexpr FrameType type = FrameType::update;
  // How training went: absent where the client shares no metrics.
  struct Report {
    double images_per_second = 0, train_loss = 0;
    std::map<std::string, double> penalties;  // NaN: not defined
    TimeSplit time = {};  // this client's, since it last told or since its start
  };
  int64_t round = 0;
  int64_t samples = 0;  // n_i: 1 .. kMaxSamples (federation/combine/average.h)
  std::optional<Report> report;
  TensorMap tensors;
};

struct Final {
  static constexpr FrameType type = FrameType::final;
  int64_t round = 0;  // = rounds
  TensorMap tensors;
};

struct Metrics {
  static constexpr FrameType type = FrameType::metrics;
  int64_t round = 0;  // how many rounds the scored tensors have behind them
  ShareMetrics share = ShareMetrics::none;
  std::optional<SiteEvaluation> evaluation;  // absent exactly where share is none
  TimeSplit time = {};                       // as Update::Report's; sent with the evaluation
};

struct Bye {
  static constexpr FrameType type = FrameType::bye;
};

struct Abort {
  static constexpr FrameType type = FrameType::abort;
  std::string reason;
};

using Message = std::variant<Hello, Welcome, Refuse, Round, Update, Final, Metrics, Bye, Abort>;

// What the decoder holds a frame against.
struct Expected {
  std::string peer;    // names the sender in errors: "client 'north'"; empty: the caller does
  Schema schema;       // of Round, Update and Final
  size_t classes = 0;  // extent of a confusion matrix
};

Bytes encode(const Message& message);
Message decode(const Frame& frame, const Expected& expected);

// "f32[8, 192]" for every tensor.
Schema schema_of(const TensorMap& tensors);
// SHA-256 of the class names in order, unambiguously joined (as a JSON array).
std::string classes_digest(const std::vector<std::string>& classes);
// Throws ProtocolError unless `tensors` has exactly the names, shapes and dtypes of `schema` and
// only finite values. `where` opens the message: "client 'north': Update frame".
void check_tensors(const TensorMap& tensors, const Schema& schema, std::string_view where);

// Text from a peer, fit for a terminal and a log: at most 500 bytes, control characters replaced.
std::string printable(std::string_view text);

}  // namespace orthofed
