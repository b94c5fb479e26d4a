// For federation tests: sites whose training is arithmetic, a peer that speaks raw bytes, a proxy
// that records them, and a guard that ends a test which hangs.
#pragma once
#include <arpa/inet.h>
#include <fmt/core.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <future>
#include <mutex>
#include <thread>

#include "engine/io/files.h"
#include "engine/io/sha256.h"
#include "federation/local/in_process.h"

namespace orthofed::test {

// Ends the process with a message when a test takes too long.
class Watchdog {
 public:
  explicit Watchdog(int seconds = 60)
      : thread_([this, seconds] {
          std::unique_lock lock(mutex_);
          if (changed_.wait_for(lock, std::chrono::seconds(seconds), [this] { return done_; }))
            return;
          std::fprintf(stderr, "the test hangs: ended after %d s\n", seconds);
          std::abort();
        }) {}
  ~Watchdog() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::thread thread_;
};

class FederationTest : public testing::Test {
  Watchdog watchdog_;
};

inline void sleep_seconds(double seconds) {
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

// ---- What the tests federate --------------------------------------------------------------------

inline TensorMap theta0() {
  return {{"blocks.0.attn.qkv.general.a", Tensor::of<float>({1, 2, 3, 4, 5, 6}, {2, 3})},
          {"head.weight", Tensor::of<float>({0.5f, -0.25f, 8}, {3})}};
}

inline Agreement agreement_for(const std::string& method = "opal") {
  return {method,
          sha256("base"),
          {"round", "lobed", "granular"},
          method == "local" ? Schema{} : schema_of(theta0())};
}

inline RunConfig config_for(std::vector<std::string> clients, const std::string& method = "opal") {
  RunConfig config;
  config.method = method;
  config.rounds = 3;
  config.federation.address = "127.0.0.1:0";
  config.federation.clients = std::move(clients);
  config.federation.timeout_seconds = 20;
  config.federation.join_timeout_seconds = 20;
  config.federation.max_frame_mb = 4;
  return config;
}

inline TransportOptions quick_transport() {
  TransportOptions options;
  options.handshake_seconds = 10;
  options.stall_seconds = 10;
  options.linger_seconds = 0.1;
  return options;
}

inline SiteMetrics scores(int64_t right, int64_t wrong) {
  SiteMetrics m;
  m.samples = right + wrong;
  m.accuracy = m.balanced_accuracy = double(right) / double(m.samples);
  m.auroc = std::numeric_limits<double>::quiet_NaN();  // not defined: JSON null on the wire
  m.classes_scored = {1};
  m.confusion = {{0, 0, 0}, {wrong, right, 0}, {0, 0, 0}};
  return m;
}

// Training adds a constant to every element. The personal state is a number that never leaves.
class ArithmeticSite : public Site {
 public:
  ArithmeticSite(std::string name, float step, int64_t samples, const std::string& method = "opal")
      : name_(std::move(name)), step_(step), samples_(samples), agreement_(agreement_for(method)) {}

  const std::string& name() const override { return name_; }
  Agreement agreement() const override { return agreement_; }

  SiteUpdate train(const TensorMap& broadcast, int64_t round, int64_t) override {
    sleep_seconds(delay);
    if (on_train) on_train(round);
    SiteUpdate update;
    for (const auto& [name, tensor] : broadcast) {
      update.tensors[name] = tensor.clone();
      update.tensors[name].add(Tensor::full(tensor.shape(), DType::f32, step_));
    }
    personal += step_;
    seen.push_back(broadcast);
    update.samples = samples_;
    update.images_per_second = 100;
    update.train_loss = 1.0 / double(round + 1);
    update.penalties = {{"update", 0.5}, {"features", std::numeric_limits<double>::quiet_NaN()}};
    return update;
  }
  SiteEvaluation evaluate(const TensorMap& broadcast) override {
    if (on_evaluate) on_evaluate();
    evaluated.push_back(broadcast);
    finished_before_evaluation = finished;
    return {scores(7, 3), scores(6, 4)};
  }
  void finish(const TensorMap& broadcast) override {
    EXPECT_FALSE(finished);
    finished = true;
    final_broadcast = broadcast;
    if (agreement_.method == "fedavg_ft") personal += 1000;
  }

  Agreement& mutable_agreement() { return agreement_; }

  double delay = 0;
  std::function<void(int64_t)> on_train;
  std::function<void()> on_evaluate;
  double personal = 0;
  bool finished = false, finished_before_evaluation = false;
  std::vector<TensorMap> seen, evaluated;
  TensorMap final_broadcast;

 private:
  std::string name_;
  float step_;
  int64_t samples_;
  Agreement agreement_;
};

inline bool same_bits(const TensorMap& a, const TensorMap& b) {
  if (schema_of(a) != schema_of(b)) return false;
  for (const auto& [name, tensor] : a) {
    const auto x = tensor.to_vector(), y = b.at(name).to_vector();
    if (std::memcmp(x.data(), y.data(), x.size() * sizeof(double)) != 0) return false;
  }
  return true;
}

// The message of what `f` throws, which must be an E.
template <class E, class F>
std::string message_of(F f) {
  try {
    f();
  } catch (const E& e) {
    return e.what();
  } catch (const std::exception& e) {
    ADD_FAILURE() << "another exception: " << e.what();
    return {};
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

#define EXPECT_SAYS(text, part)                              \
  EXPECT_NE(std::string(text).find(part), std::string::npos) \
      << "expected \"" << (part) << "\" in: " << (text)

// ---- A server on a thread -----------------------------------------------------------------------

class Events : public ServerObserver {
 public:
  void client_joined(const std::string& client, size_t, size_t) override {
    add("joined " + client);
  }
  void client_left(const std::string& client, const std::string& why) override {
    add("left " + client + ": " + why);
  }
  void client_refused(const std::string&, const std::string& why) override {
    add("refused: " + why);
  }
  void client_round(const ClientRound& complete) override {
    const std::lock_guard lock(mutex_);
    rounds_.push_back(complete);
  }
  void round_aggregated(int64_t, const TensorMap& general) override {
    const std::lock_guard lock(mutex_);
    aggregates_.push_back(general);
  }
  void finished(const FederationResult& result) override {
    std::function<void(const FederationResult&)> f;
    {
      const std::lock_guard lock(mutex_);
      f = at_the_end_;
    }
    if (f) f(result);
  }
  // Called when the server has all answers.
  void at_the_end(std::function<void(const FederationResult&)> f) {
    const std::lock_guard lock(mutex_);
    at_the_end_ = std::move(f);
  }
  bool wait_for(const std::string& part, double seconds = 10) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::duration<double>(seconds),
                             [&] { return log_.find(part) != std::string::npos; });
  }
  std::string log() {
    const std::lock_guard lock(mutex_);
    return log_;
  }
  std::vector<ClientRound> rounds() {
    const std::lock_guard lock(mutex_);
    return rounds_;
  }
  std::vector<TensorMap> aggregates() {
    const std::lock_guard lock(mutex_);
    return aggregates_;
  }

 protected:
  void add(const std::string& line) {
    const std::lock_guard lock(mutex_);
    log_ += line + "\n";
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string log_;
  std::function<void(const FederationResult&)> at_the_end_;
  std::vector<ClientRound> rounds_;
  std::vector<TensorMap> aggregates_;
};

class ServerThread {
 public:
  explicit ServerThread(const RunConfig& config, TransportOptions transport = quick_transport()) {
    ServerOptions options;
    options.stop = stop_.get_token();
    options.transport = transport;
    options.listening = [this](uint16_t bound) { port_.set_value(bound); };
    result_ = std::async(std::launch::async, [this, config, options] {
      try {
        return serve(config, agreement_for(config.method),
                     config.method == "local" ? TensorMap{} : theta0(), events, options);
      } catch (...) {
        try {
          port_.set_value(0);  // where it never listened
        } catch (const std::future_error&) {
        }
        throw;
      }
    });
    port = port_.get_future().get();
  }
  ~ServerThread() { stop_.request_stop(); }

  std::string address() const { return fmt::format("127.0.0.1:{}", port); }
  FederationResult result() { return result_.get(); }
  void stop() { stop_.request_stop(); }

  Events events;
  uint16_t port = 0;

 private:
  std::stop_source stop_;
  std::promise<uint16_t> port_;
  std::future<FederationResult> result_;
};

inline JoinOptions quick_join() {
  JoinOptions options;
  options.join_timeout_seconds = 10;
  options.transport = quick_transport();
  return options;
}

inline std::future<JoinResult> join_async(const std::string& address, Site& site,
                                          JoinOptions options = quick_join()) {
  return std::async(std::launch::async, [address, &site, options] {
    ClientObserver silent;
    return join(address, site, options, silent);
  });
}

// ---- Raw sockets --------------------------------------------------------------------------------

class Socket {
 public:
  explicit Socket(int descriptor) : descriptor_(descriptor) {
    if (descriptor < 0) throw Error(std::string("socket: ") + std::strerror(errno));
  }
  ~Socket() { close(); }
  Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}

  static Socket connect(uint16_t port) {
    Socket s(::socket(AF_INET, SOCK_STREAM, 0));
    const sockaddr_in address = loopback(port);
    if (::connect(s.descriptor_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
      throw Error(std::string("connect: ") + std::strerror(errno));
    return s;
  }
  static Socket listen(uint16_t* port) {
    Socket s(::socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in address = loopback(0);
    socklen_t size = sizeof address;
    if (::bind(s.descriptor_, reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
        ::listen(s.descriptor_, 8) != 0 ||
        ::getsockname(s.descriptor_, reinterpret_cast<sockaddr*>(&address), &size) != 0)
      throw Error(std::string("listen: ") + std::strerror(errno));
    *port = ntohs(address.sin_port);
    return s;
  }
  Socket accept() { return Socket(::accept(descriptor_, nullptr, nullptr)); }

  void send(std::span<const std::byte> bytes) {  // a peer that has gone is the test's to notice
    while (!bytes.empty()) {
      const ssize_t n = ::send(descriptor_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return;
      bytes = bytes.subspan(size_t(n));
    }
  }
  // What has arrived, at most 64 KiB; empty at the end of the stream or after `seconds`.
  Bytes receive(double seconds = 10) {
    pollfd p{descriptor_, POLLIN, 0};
    if (::poll(&p, 1, int(seconds * 1000)) <= 0) return {};
    Bytes bytes(1 << 16);
    const ssize_t n = ::recv(descriptor_, bytes.data(), bytes.size(), 0);
    bytes.resize(n > 0 ? size_t(n) : 0);
    return bytes;
  }
  void close() {
    if (descriptor_ >= 0) ::close(std::exchange(descriptor_, -1));
  }
  void shutdown() { ::shutdown(descriptor_, SHUT_RDWR); }

 private:
  static sockaddr_in loopback(uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }
  int descriptor_;
};

// Speaks the protocol frame by frame, or any bytes at all.
class RawPeer {
 public:
  explicit RawPeer(Socket socket) : socket_(std::move(socket)) {}
  explicit RawPeer(uint16_t port) : socket_(Socket::connect(port)) {}

  void send(std::span<const std::byte> bytes) { socket_.send(bytes); }
  void send(const Message& message) { socket_.send(encode(message)); }

  // The next message, or nullopt when the stream ends.
  std::optional<Message> receive() {
    for (;;) {
      if (buffer_.size() >= kHeaderBytes) {
        const auto header = decode_header(std::span<const std::byte>(buffer_).first<kHeaderBytes>(),
                                          1 << 24, "peer");
        const size_t size = kHeaderBytes + header.manifest_bytes + header.tensor_bytes;
        if (buffer_.size() >= size) {
          const Frame frame =
              *FrameReader(std::span<const std::byte>(buffer_).first(size), 1 << 24, "peer").next();
          buffer_.erase(buffer_.begin(), buffer_.begin() + std::ptrdiff_t(size));
          return decode(frame, {"peer", schema_of(theta0()), 3});
        }
      }
      const Bytes more = socket_.receive();
      if (more.empty()) return std::nullopt;
      buffer_.insert(buffer_.end(), more.begin(), more.end());
    }
  }
  template <class M>
  M expect() {
    const std::optional<Message> message = receive();
    if (message && std::holds_alternative<M>(*message)) return std::get<M>(*message);
    ADD_FAILURE() << "expected a " << name_of(M::type) << " frame, got "
                  << (message ? std::visit([](const auto& m) { return name_of(m.type); }, *message)
                              : "the end of the stream");
    return {};
  }
  // Why the other side ended it: the reason of the next Refuse or Abort.
  std::string reason() {
    while (const std::optional<Message> message = receive()) {
      if (const auto* refuse = std::get_if<Refuse>(&*message)) return refuse->reason;
      if (const auto* abort = std::get_if<Abort>(&*message)) return abort->reason;
    }
    return "(end of the stream)";
  }
  void close() { socket_.close(); }

 private:
  Socket socket_;
  Bytes buffer_;
};

inline Hello hello_of(const std::string& client, const Agreement& a = agreement_for()) {
  return {client, a.method, a.base_sha256, classes_digest(a.classes), a.schema};
}

// Forwards one connection in both directions and keeps every byte that the client sent.
class RecordingProxy {
 public:
  explicit RecordingProxy(uint16_t server_port) : port(0), listener_(Socket::listen(&port)) {
    thread_ = std::thread([this, server_port] {
      Socket client = listener_.accept(), server = Socket::connect(server_port);
      std::thread back([&] {
        for (Bytes b = server.receive(60); !b.empty(); b = server.receive(60)) client.send(b);
        client.shutdown();
      });
      for (Bytes b = client.receive(60); !b.empty(); b = client.receive(60)) {
        from_client.insert(from_client.end(), b.begin(), b.end());
        server.send(b);
      }
      server.shutdown();
      back.join();
    });
  }
  ~RecordingProxy() { join(); }
  void join() {
    if (thread_.joinable()) thread_.join();
  }
  std::string address() const { return fmt::format("127.0.0.1:{}", port); }

  uint16_t port;
  Bytes from_client;  // complete after join()

 private:
  Socket listener_;
  std::thread thread_;
};

}  // namespace orthofed::test
