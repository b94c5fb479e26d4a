// The messages of the round protocol (docs/protocol.md) as structs, and the frames that carry them.
//
// Reading trusts nothing: every key of the manifest and every tensor is checked, and a ProtocolError
// names the peer, the frame and the field.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "federation/site.h"
#include "federation/wire/frame.h"
#include "federation/wire/schema.h"
#include "models/config/config.h"

namespace orthofed {

using Settings = std::map<std::string, std::string>;  // configuration key -> value as TOML

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

}  // namespace orthofed
