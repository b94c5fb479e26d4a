#include "federation/client/client.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "models/config/names.h"

namespace orthofed {
namespace {

constexpr double kRetrySeconds = 0.5;

class Client {
 public:
  Client(const std::string& address, Site& site, const JoinOptions& options,
         ClientObserver& observer)
      : address_(address),
        site_(site),
        options_(options),
        observer_(observer),
        time_(site.time()),
        agreement_(site.agreement()),
        expected_{"server", agreement_.schema, agreement_.classes.size()},
        network_(options.transport) {}

  JoinResult run() {
    const Spending other(&time_, Activity::other);
    try {
      enter();
      take_part();
      network_.close(connection_);
      result_.time = time_.split();
      return std::move(result_);
    } catch (const Cancelled&) {
      abort("stopped by its user");
      throw;
    } catch (const std::exception&) {
      abort(fmt::format("failed while {}; its log says why", doing_));
      throw;
    }
  }

 private:
  // ---- Joining ----------------------------------------------------------------------------------

  // Until a server accepts or refuses. A server that closes without a word is one that is stopping
  // or overloaded: try again.
  void enter() {
    doing_ = "joining";
    const Spending joining(&time_, Activity::joining);
    const auto deadline = after(options_.join_timeout_seconds);
    for (;;) {
      connection_ = network_.connect(address_, deadline, options_.stop);
      observer_.connected(address_);
      send(Hello{site_.name(), agreement_.method, agreement_.base_sha256,
                 classes_digest(agreement_.classes), agreement_.schema});
      const std::optional<Event> event = network_.wait(deadline, options_.stop, &time_);
      if (event && event->kind == Event::Kind::frame) return accept(event->frame);
      if (event && event->kind == Event::Kind::invalid)
        throw UserError(fmt::format(
            "{} is not an orthofed server of this release: {}: correct federation.address",
            address_, event->detail));
      if (after(kRetrySeconds) >= deadline)
        throw UserError(fmt::format("the server at {} does not let client '{}' in: {}: see its log",
                                    address_, site_.name(), event ? event->detail : "no answer"));
      network_.wait(after(kRetrySeconds), options_.stop);
    }
  }

  void accept(const Frame& frame) {
    result_.bytes_received += int64_t(frame.size());
    const Message message = decoded(frame);
    if (const auto* refused = std::get_if<Refuse>(&message))
      throw UserError(fmt::format("the server at {} refuses: {}", address_, refused->reason));
    const auto* welcome = std::get_if<Welcome>(&message);
    if (!welcome) unexpected(frame);
    welcome_ = *welcome;
    check(welcome_.settings);
    // The server takes a few updates at a time; it gives all of them this long.
    network_.admit(connection_, size_t(options_.max_frame_mb) << 20, welcome_.answer_seconds);
    observer_.joined(welcome_.rounds);
  }

  // An average of adapters that were trained in different ways is no method's: say so before the
  // first round. The client compares, so that its own configuration stays at home.
  void check(const Settings& server) const {
    std::string differences;
    for (const auto& [key, value] : server) {
      const auto own = options_.settings.find(key);
      if (own != options_.settings.end() && own->second == value) continue;
      differences +=
          fmt::format("{}{} = {} (here {})", differences.empty() ? "" : ", ", printable(key),
                      printable(value), own == options_.settings.end() ? "not known" : own->second);
    }
    if (!differences.empty())
      throw UserError(fmt::format("the server at {} trains with other settings: {}: set them alike",
                                  address_, differences));
  }

  // ---- Rounds -----------------------------------------------------------------------------------

  void take_part() {
    // Each wait is for other clients too: they have answer_seconds, the frames some more.
    const double slack = options_.transport.stall_seconds;
    double patience = welcome_.join_seconds + slack;
    int64_t next = 0;
    for (bool done = false;;) {
      doing_ = "waiting for the server";
      const Frame frame =
          receive(after(patience), next == 0 ? Activity::joining : Activity::waiting);
      const Message message = decoded(frame);
      patience = welcome_.answer_seconds + slack;
      if (const auto* round = std::get_if<Round>(&message);
          round && round->round == next && next < welcome_.rounds) {
        train(*round);
        ++next;
      } else if (const auto* last = std::get_if<Final>(&message);
                 last && last->round == next && next == welcome_.rounds && !done) {
        finish(*last);
        done = true;
      } else if (std::holds_alternative<Bye>(message) && done) {
        return;
      } else if (const auto* ended = std::get_if<Abort>(&message)) {
        throw FederationError("the server ended the run: " + ended->reason);
      } else {
        unexpected(frame);
      }
    }
  }

  void train(const Round& round) {
    observer_.round_started(round.round, welcome_.rounds);
    if (round.evaluate) evaluate(round.round, round.tensors);
    doing_ = "training";
    const SiteUpdate update = train_site(round);
    check(update, round.round);
    check_still_there();

    Update message{round.round, update.samples, std::nullopt, update.tensors};
    if (options_.share != ShareMetrics::none)
      message.report = Update::Report{update.images_per_second, update.train_loss, update.penalties,
                                      news_of_time()};
    const int64_t bytes = send(message);
    observer_.update_sent(round.round, update, bytes);
  }

  void finish(const Final& last) {
    doing_ = "finishing";
    {
      const Spending training(&time_,
                              Activity::training);  // extra epochs, of methods that fine-tune
      site_.finish(last.tensors);
    }
    evaluate(last.round, last.tensors);
    result_.general = last.tensors;
  }

  void evaluate(int64_t round, const TensorMap& tensors) {
    doing_ = "evaluating";
    {
      const Spending evaluation(&time_, Activity::evaluation);
      result_.evaluation = site_.evaluate(tensors);
    }
    observer_.evaluated(round, result_.evaluation);
    check_still_there();
    Metrics message{round, options_.share, std::nullopt};
    if (options_.share != ShareMetrics::none) {
      message.evaluation = result_.evaluation;
      message.time = news_of_time();
    }
    send(message);
  }

  SiteUpdate train_site(const Round& round) {
    const Spending training(&time_, Activity::training);
    return site_.train(round.tensors, round.round, welcome_.rounds);
  }

  // How time went since the server was last told, in whole milliseconds; what is left over is told
  // the next time.
  TimeSplit news_of_time() {
    const TimeSplit now = time_.split();
    TimeSplit news;
    for (const Activity a : kActivities)
      news[a] = std::max(0.0, std::floor(1e3 * (now[a] - told_[a]))) / 1e3;
    told_ += news;
    return news;
  }

  void check(const SiteUpdate& update, int64_t round) {
    const Spending communication(&time_, Activity::communication);
    const std::string where = fmt::format("round {} of {}: the update of client '{}'", round + 1,
                                          welcome_.rounds, site_.name());
    try {
      check_tensors(update.tensors, agreement_.schema, where);
    } catch (const ProtocolError& e) {
      throw Error(e.what());  // the site's fault, not a peer's
    }
    if (update.samples < 1)
      throw UserError(where +
                      " comes from no training image: check the data, or leave this client "
                      "out of federation.clients");
    if (!std::isfinite(update.train_loss))
      throw Error(where + " has a loss of NaN or infinity: training diverged");
  }

  // ---- Frames -----------------------------------------------------------------------------------

  int64_t send(const Message& message) {
    const Spending communication(&time_, Activity::communication);
    auto frame = std::make_shared<const Bytes>(encode(message));
    const auto bytes = int64_t(frame->size());
    result_.bytes_sent += bytes;
    network_.send(connection_, std::move(frame));
    return bytes;
  }

  Message decoded(const Frame& frame) {
    const Spending communication(&time_, Activity::communication);
    return decode(frame, expected_);
  }

  Frame receive(Clock::time_point deadline, Activity meanwhile) {
    const Spending waiting(&time_, meanwhile);
    std::optional<Event> event = network_.wait(deadline, options_.stop, &time_);
    if (!event)
      throw FederationError("the server sent nothing for too long: it or the network hangs");
    return take(std::move(*event));
  }

  Frame take(Event event) {
    if (event.kind != Event::Kind::frame)
      throw FederationError(fmt::format("lost the server at {}: {}", address_, event.detail));
    result_.bytes_received += int64_t(event.frame.size());
    return std::move(event.frame);
  }

  // While the site was busy the server may have ended the run, or died: then there is a reason to
  // give, which a failing send would bury.
  void check_still_there() {
    std::optional<Event> event = network_.wait(Clock::now(), options_.stop);
    if (!event) return;
    const Frame frame = take(std::move(*event));
    const Message message = decoded(frame);
    if (const auto* ended = std::get_if<Abort>(&message))
      throw FederationError("the server ended the run: " + ended->reason);
    unexpected(frame);
  }

  [[noreturn]] void unexpected(const Frame& frame) const {
    throw ProtocolError(fmt::format("server: {} frame where none was due: {}", name_of(frame.type),
                                    printable(frame.manifest)));
  }

  void abort(const std::string& reason) {
    if (connection_ == 0) return;
    send(Abort{reason});
    network_.close(connection_);
  }

  const std::string address_;
  Site& site_;
  const JoinOptions& options_;
  ClientObserver& observer_;
  Stopwatch& time_;
  const Agreement agreement_;
  const Expected expected_;

  int64_t connection_ = 0;
  Welcome welcome_;
  std::string doing_;  // what an Abort tells the server: never more than this
  TimeSplit told_;     // of this client's time: what the server knows
  JoinResult result_;
  Transport network_;  // last: it is closed before the rest goes
};

}  // namespace

JoinResult join(const std::string& address, Site& site, const JoinOptions& options,
                ClientObserver& observer) {
  if (!is_client_name(site.name()))
    throw UserError(
        fmt::format("client name \"{}\": use up to 64 letters, digits, '.', '_' and '-', "
                    "no dot first",
                    site.name()));
  return Client(address, site, options, observer).run();
}

}  // namespace orthofed
