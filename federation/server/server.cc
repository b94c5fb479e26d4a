#include "federation/server/server.h"

#include <fmt/core.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <map>

#include "federation/combine/average.h"
#include "models/config/names.h"
#include "models/methods/method.h"

namespace orthofed {
namespace {

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void check_config(const RunConfig& config) {
  const FederationConfig& f = config.federation;
  const auto refuse = [](const std::string& what) { throw UserError(what); };
  if (method_named(config.method).all_images)
    refuse(fmt::format(
        "method = \"{}\" trains on all images in one place, which a federation never has: "
        "run it on the one machine that has them",
        config.method));
  if (config.rounds < 1) refuse("rounds: set it to at least 1");
  if (f.clients.empty())
    refuse("federation.clients is empty: list the names of the clients the server waits for");
  for (const std::string& name : f.clients) {
    if (!is_client_name(name))
      refuse(
          fmt::format("federation.clients: \"{}\" is not a client name: use up to 64 letters, "
                      "digits, '.', '_' and '-', no dot first",
                      name));
    if (std::count(f.clients.begin(), f.clients.end(), name) > 1)
      refuse(fmt::format("federation.clients: \"{}\" is listed twice", name));
  }
  if (!(f.timeout_seconds > 0)) refuse("federation.timeout_seconds: set it above 0");
  if (!(f.join_timeout_seconds > 0)) refuse("federation.join_timeout_seconds: set it above 0");
  if (f.max_frame_mb < 1 || f.max_frame_mb > kMaxFrameMb)
    refuse(fmt::format("federation.max_frame_mb: set it to 1 .. {}", kMaxFrameMb));
}

// The first thing on which the two sides differ, in words; empty where they agree.
std::string difference(const Hello& hello, const Agreement& server) {
  if (hello.method != server.method)
    return fmt::format("method differs: \"{}\" at the server, \"{}\" at the client", server.method,
                       printable(hello.method));
  if (hello.base_sha256 != server.base_sha256)
    return fmt::format(
        "base model differs: sha256 {:.12}... at the server, {:.12}... at the client; both need "
        "the same file in model.weights",
        server.base_sha256, hello.base_sha256);
  if (hello.classes_sha256 != classes_digest(server.classes))
    return "classes differ: data.classes must list the same names in the same order on both sides";
  const auto entry = [](const Schema& schema, const std::string& name) {
    const auto it = schema.find(name);
    return it == schema.end() ? std::string("absent") : printable(it->second);
  };
  Schema names = server.schema;
  names.insert(hello.schema.begin(), hello.schema.end());
  for (const auto& [name, unused] : names)
    if (entry(server.schema, name) != entry(hello.schema, name))
      return fmt::format(
          "adapter schema differs: '{}' is {} at the server, {} at the client: [lora] and "
          "model.head must be the same on both sides",
          printable(name), entry(server.schema, name), entry(hello.schema, name));
  return {};
}

// A client that has joined.
struct Member {
  int64_t connection = 0;
  bool answered = false;         // what is asked of it now has arrived
  bool owes_evaluation = false;  // of this round's broadcast, before its update
  ClientRound record;
  bool has_record = false;  // the record waits for its scores
  ClientResult result;
  std::vector<double> rates;  // images/s of each round, as far as shared

  void spent(const TimeSplit& news) {
    for (std::optional<TimeSplit>* time : {&record.time, &result.time}) {
      if (!*time) time->emplace();
      **time += news;
    }
  }
};

class Server {
 public:
  Server(const RunConfig& config, const Agreement& agreement, const TensorMap& initial,
         ServerObserver& observer, const ServerOptions& options)
      : config_(config),
        agreement_(agreement),
        weighting_(config.federation.weights),
        observer_(observer),
        stop_(options.stop),
        listening_(options.listening),
        settings_(options.settings),
        time_(options.time),
        theta_(initial),
        network_(options.transport) {}

  FederationResult run() {
    time_.turn_to(Activity::other);
    try {
      join();
      const auto start = Clock::now();
      for (round_ = 0; round_ < config_.rounds; ++round_) {
        if (round_ > 0) note_time();
        run_round();
      }
      run_final();
      return finish(seconds_since(start));
    } catch (const FederationError& e) {
      abort(e.what());
      throw;
    } catch (const Cancelled&) {
      abort("the server was stopped");
      throw;
    } catch (const std::exception&) {
      abort("the server failed; see its log");
      throw;
    }
  }

 private:
  enum class Phase { joining, round, final, over };

  // ---- Phases -----------------------------------------------------------------------------------

  void join() {
    const Spending joining(&time_, Activity::joining);
    const FederationConfig& f = config_.federation;
    const uint16_t port = network_.listen(f.address);
    if (listening_) listening_(port);
    join_deadline_ = after(f.join_timeout_seconds);
    if (handle_until(join_deadline_, [&] { return members_.size() == f.clients.size(); })) return;
    std::string missing;
    for (const std::string& name : f.clients)
      if (!members_.count(name)) missing += (missing.empty() ? "" : ", ") + name;
    throw FederationError(
        fmt::format("not joined within {} s (federation.join_timeout_seconds): {}",
                    f.join_timeout_seconds, missing));
  }

  void run_round() {
    phase_ = Phase::round;
    observer_.round_started(round_, config_.rounds);
    const bool evaluate = config_.federation.evaluate_every_round && round_ > 0;
    for (auto& [name, member] : members_) member.owes_evaluation = evaluate;
    sum_ = Average(weighting_);
    broadcast(Round{round_, evaluate, theta_});
    await_answers();
    {
      const Spending aggregation(&time_, Activity::aggregation);
      theta_ = sum_.result();
    }
    const Spending saving(&time_, Activity::saving);
    observer_.round_aggregated(round_, theta_);
  }

  void run_final() {
    phase_ = Phase::final;
    for (auto& [name, member] : members_) member.owes_evaluation = true;
    broadcast(Final{round_, theta_});
    await_answers();
  }

  // Everybody is told that the run is complete when `finished` has returned, which may have put the
  // result on disk, and not before.
  FederationResult finish(double seconds) {
    phase_ = Phase::over;
    FederationResult result;
    result.general = theta_;
    result.wall_seconds = seconds;
    const auto bye = std::make_shared<const Bytes>(encode(Bye{}));
    for (auto& [name, member] : members_) {
      member.result.bytes_received += int64_t(bye->size());
      double sum = 0;
      for (double rate : member.rates) sum += rate;
      member.result.images_per_second = member.rates.empty()
                                            ? std::numeric_limits<double>::quiet_NaN()
                                            : sum / double(member.rates.size());
      result.clients.push_back(member.result);
    }
    note_time();
    result.time = noted_;
    result.time_by_round = time_by_round_;
    observer_.finished(result);
    // Whoever hears that the run is over can rely on its result: what keeps it has kept it.
    for (auto& [name, member] : members_) {
      network_.send(member.connection, bye);
      network_.close(member.connection);
    }
    return result;
  }

  // A round is over.
  void note_time() {
    const TimeSplit now = time_.split();
    time_by_round_.push_back(now);
    time_by_round_.back() -= noted_;
    noted_ = now;
  }

  // Tells every member why the run ends here, and reports the rounds whose scores will not come.
  void abort(const std::string& reason) {
    phase_ = Phase::over;
    for (auto& [name, member] : members_) {
      send(member, encode(Abort{reason}));
      network_.close(member.connection);
    }
    for (auto& [name, member] : members_) complete_record(member);
  }

  // ---- Asking and waiting -----------------------------------------------------------------------

  void broadcast(const Message& message) {
    const Spending communication(&time_, Activity::communication);
    const auto frame = std::make_shared<const Bytes>(encode(message));
    if (frame->size() > max_frame_bytes())
      throw UserError(fmt::format(
          "a broadcast takes {} MiB, federation.max_frame_mb = {}: raise it on the server "
          "and at the clients",
          (frame->size() >> 20) + 1, config_.federation.max_frame_mb));
    asked_at_ = Clock::now();
    broadcast_bytes_ = int64_t(frame->size());
    for (auto& [name, member] : members_) {
      member.answered = false;
      send(member, frame);
    }
  }

  void await_answers() {
    const Spending meanwhile(&time_, Activity::waiting);
    const auto deadline = after(config_.federation.timeout_seconds);
    const auto waiting = [](const auto& m) { return !m.second.answered; };
    const auto all_answered = [&] {
      return std::none_of(members_.begin(), members_.end(), waiting);
    };
    if (handle_until(deadline, all_answered)) return;
    const auto& late = *std::find_if(members_.begin(), members_.end(), waiting);
    fail(late.first, fmt::format("no answer within {} s (federation.timeout_seconds)",
                                 config_.federation.timeout_seconds));
  }

  [[noreturn]] void fail(const std::string& client, const std::string& why) const {
    const std::string stage = phase_ == Phase::final
                                  ? std::string("final evaluation")
                                  : fmt::format("round {} of {}", round_ + 1, config_.rounds);
    throw FederationError(fmt::format("{} failed: client '{}': {}", stage, client, why));
  }

  void send(Member& member, SharedBytes frame) {
    member.result.bytes_received += int64_t(frame->size());
    network_.send(member.connection, std::move(frame));
  }
  void send(Member& member, Bytes frame) {
    send(member, std::make_shared<const Bytes>(std::move(frame)));
  }

  size_t max_frame_bytes() const { return size_t(config_.federation.max_frame_mb) << 20; }

  // ---- Events -----------------------------------------------------------------------------------

  // True when `done`, false when the deadline passed first (strangers cannot postpone it).
  template <class Done>
  bool handle_until(Clock::time_point deadline, Done done) {
    while (!done()) {
      const bool handled = handle_next(deadline);
      if (!done() && (!handled || Clock::now() >= deadline)) return false;
    }
    return true;
  }

  // False when the deadline passed without an event.
  bool handle_next(Clock::time_point deadline) {
    std::optional<Event> event = network_.wait(deadline, stop_, &time_);
    if (!event) return false;
    const Spending communication(&time_, Activity::communication);
    if (event->kind == Event::Kind::opened) {
      peers_[event->connection] = event->detail;
      return true;
    }
    const auto known = by_connection_.find(event->connection);
    if (known == by_connection_.end()) {
      handle_stranger(*event);
      return true;
    }
    const std::string client = known->second;  // a copy: the entry goes with its member
    if (event->kind == Event::Kind::frame)
      handle_frame(client, members_.at(client), event->frame);
    else if (phase_ == Phase::joining)
      remove(client, event->detail);
    else
      fail(client, event->detail);
    return true;
  }

  void handle_stranger(const Event& event) {
    const std::string peer = peers_[event.connection];
    if (event.kind == Event::Kind::closed) {
      peers_.erase(event.connection);
      return;
    }
    if (event.kind == Event::Kind::invalid) return refuse(event.connection, event.detail);
    try {
      const Message message = decode(event.frame, {peer, agreement_.schema, 0});
      if (const auto* hello = std::get_if<Hello>(&message))
        admit(event, *hello);
      else
        refuse(event.connection, fmt::format("{} frame before a Hello", name_of(event.frame.type)));
    } catch (const ProtocolError& e) {
      refuse(event.connection, e.what());
    }
  }

  void admit(const Event& event, const Hello& hello) {
    const auto& clients = config_.federation.clients;
    const auto no = [&](const std::string& why) {
      refuse(event.connection, fmt::format("client '{}': {}", hello.client, why));
    };
    if (std::find(clients.begin(), clients.end(), hello.client) == clients.end())
      return no("the name is not in federation.clients");
    if (members_.count(hello.client)) return no("a client of this name has joined already");
    if (phase_ != Phase::joining) return no("the federation has started without it");
    if (const std::string what = difference(hello, agreement_); !what.empty()) return no(what);

    network_.admit(event.connection, max_frame_bytes());
    Member& member = members_[hello.client];
    member.connection = event.connection;
    by_connection_[event.connection] = hello.client;
    member.result.client = hello.client;
    member.result.bytes_sent = int64_t(event.frame.size());
    const double left = std::chrono::duration<double>(join_deadline_ - Clock::now()).count();
    send(member, encode(Welcome{config_.rounds, std::max(left, 0.0),
                                config_.federation.timeout_seconds, settings_}));
    observer_.client_joined(hello.client, members_.size(), clients.size());
  }

  void refuse(int64_t connection, const std::string& why) {
    const std::string peer = peers_[connection];
    network_.send(connection, std::make_shared<const Bytes>(encode(Refuse{why})));
    network_.close(connection);
    peers_.erase(connection);
    observer_.client_refused(peer, why);
  }

  // Before the first round a client may go, and come again.
  void remove(const std::string& client, const std::string& why) {
    const int64_t connection = members_.at(client).connection;
    network_.close(connection);
    by_connection_.erase(connection);
    members_.erase(client);
    observer_.client_left(client, why);
  }

  void handle_frame(const std::string& client, Member& member, const Frame& frame) {
    member.result.bytes_sent += int64_t(frame.size());
    try {
      // What goes wrong is told by remove() and fail(), which name the client.
      const Message message = decode(frame, {"", agreement_.schema, agreement_.classes.size()});
      if (const auto* abort = std::get_if<Abort>(&message)) {
        if (phase_ == Phase::joining) return remove(client, abort->reason);
        fail(client, abort->reason);
      }
      if (phase_ == Phase::joining) return remove(client, unexpected(frame));
      if (const auto* metrics = std::get_if<Metrics>(&message))
        take_metrics(client, member, *metrics, frame);
      else if (const auto* update = std::get_if<Update>(&message))
        take_update(client, member, *update, frame);
      else
        fail(client, unexpected(frame));
    } catch (const ProtocolError& e) {
      if (phase_ == Phase::joining) return remove(client, e.what());
      fail(client, e.what());
    }
  }

  static std::string unexpected(const Frame& frame) {
    return fmt::format("a {} frame where none was asked for", name_of(frame.type));
  }

  void take_metrics(const std::string& client, Member& member, const Metrics& metrics,
                    const Frame& frame) {
    if (member.answered || !member.owes_evaluation) fail(client, unexpected(frame));
    check_round(client, metrics.round, frame);
    member.owes_evaluation = false;
    if (metrics.evaluation) member.spent(metrics.time);
    member.record.bytes_sent += int64_t(frame.size());
    if (phase_ == Phase::final) {
      member.answered = true;
      member.result.evaluation = metrics.evaluation;
      member.record.bytes_received += broadcast_bytes_;
    }
    member.record.evaluation = metrics.evaluation;
    complete_record(member);
    observer_.metrics_received(client, metrics.round, metrics.evaluation);
  }

  void take_update(const std::string& client, Member& member, const Update& update,
                   const Frame& frame) {
    if (phase_ != Phase::round || member.answered || member.owes_evaluation)
      fail(client, unexpected(frame));
    check_round(client, update.round, frame);
    member.answered = true;
    add(update);

    member.result.samples = update.samples;
    if (update.report) member.rates.push_back(update.report->images_per_second);
    member.record = {};
    member.record.client = client;
    member.record.round = round_;
    member.record.samples = update.samples;
    member.record.seconds = seconds_since(asked_at_);
    member.record.bytes_sent = int64_t(frame.size());
    member.record.bytes_received = broadcast_bytes_;
    member.record.report = update.report;
    if (update.report) member.spent(update.report->time);
    member.has_record = true;
    observer_.update_received(member.record);
    const bool scores_follow =
        config_.federation.evaluate_every_round || round_ + 1 == config_.rounds;
    if (!scores_follow) complete_record(member);
  }

  void add(const Update& update) {
    const Spending aggregation(&time_, Activity::aggregation);
    sum_.add(update.tensors, update.samples);
  }

  void check_round(const std::string& client, int64_t stated, const Frame& frame) const {
    if (stated != round_)
      fail(client, fmt::format("{} frame: round = {}, asked for was {}", name_of(frame.type),
                               stated, round_));
  }

  void complete_record(Member& member) {
    if (!member.has_record) return;
    member.has_record = false;
    const Spending saving(&time_, Activity::saving);
    observer_.client_round(member.record);
  }

  const RunConfig& config_;
  const Agreement& agreement_;
  const Weighting weighting_;
  ServerObserver& observer_;
  const std::stop_token stop_;
  const std::function<void(uint16_t)> listening_;
  const Settings settings_;
  Stopwatch time_;
  TimeSplit noted_;  // as of the round before
  std::vector<TimeSplit> time_by_round_;

  Phase phase_ = Phase::joining;
  int64_t round_ = 0;
  TensorMap theta_;                               // theta^round
  Average sum_{weighting_};                       // of this round's updates so far
  std::map<std::string, Member> members_;         // by client
  std::map<int64_t, std::string> by_connection_;  // connection -> member
  std::map<int64_t, std::string> peers_;          // connection -> address
  Clock::time_point join_deadline_, asked_at_;
  int64_t broadcast_bytes_ = 0;
  Transport network_;  // last: it is closed before the rest goes
};

}  // namespace

FederationResult serve(const RunConfig& config, const Agreement& agreement,
                       const TensorMap& initial, ServerObserver& observer,
                       const ServerOptions& options) {
  check_config(config);
  OF_CHECK(agreement.method == config.method, "agreement and configuration name one method");
  check_tensors(initial, agreement.schema, "theta^0");
  return Server(config, agreement, initial, observer, options).run();
}

}  // namespace orthofed
