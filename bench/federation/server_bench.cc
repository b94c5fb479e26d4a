// What a round costs the server: time and memory with 1 to 1,000 clients that send the adapters of
// a ViT, and the bytes of a round against those of exchanging the whole model. The clients are one
// process that answers every broadcast at once with the same update, so the time is the network's
// and the server's alone, and the peak memory is the server's. It prints one JSON line per case.
#include <fmt/core.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "bench/support/process.h"
#include "engine/io/sha256.h"
#include "federation/server/server.h"

namespace orthofed {
namespace {

struct Model {
  const char* name;
  int64_t dim, layers;
};
constexpr Model kModels[] = {{"vit_tiny", 192, 12}, {"vit_base", 768, 12}};
constexpr int kClients[] = {1, 10, 100, 1000};
constexpr int64_t kRank = 8, kClasses = 5, kRounds = 3;

// The general adapter of rank 8 on qkv, proj, fc1 and fc2, and the shared head.
TensorMap adapters(const Model& model) {
  TensorMap t;
  const auto pair = [&](const std::string& name, int64_t in, int64_t out) {
    t[name + ".lora_a"] = Tensor::full({kRank, in}, DType::f32, 0.01);
    t[name + ".lora_b"] = Tensor::full({out, kRank}, DType::f32, 0.02);
  };
  for (int64_t i = 0; i < model.layers; ++i) {
    const std::string block = fmt::format("blocks.{}.", i);
    pair(block + "attn.qkv", model.dim, 3 * model.dim);
    pair(block + "attn.proj", model.dim, model.dim);
    pair(block + "mlp.fc1", model.dim, 4 * model.dim);
    pair(block + "mlp.fc2", 4 * model.dim, model.dim);
  }
  t["head.weight"] = Tensor::full({kClasses, model.dim}, DType::f32, 0.1);
  t["head.bias"] = Tensor::full({kClasses}, DType::f32, 0);
  return t;
}

// Parameters of the whole model in f32: what an exchange without adapters sends.
int64_t model_bytes(const Model& m) {
  const int64_t block = 12 * m.dim * m.dim + 13 * m.dim;
  return 4 * (m.layers * block + (3 * 256 + 1) * m.dim + 198 * m.dim + 2 * m.dim +
              kClasses * (m.dim + 1));
}

std::string case_name(const Model& model, int clients) {
  return fmt::format("{}:{}", model.name, clients);
}

std::string client_name(int i) {
  return fmt::format("client{:04}", i);
}

// All clients, on one connection each.
int answer(const std::string& address, const Agreement& agreement, int clients) {
  TransportOptions patient;  // one process stands for a thousand: each waits for the others
  patient.stall_seconds = 600;
  patient.max_bodies = clients;  // each would read its own at once
  Transport network(patient);
  for (int i = 0; i < clients; ++i) {
    const int64_t link = network.connect(address, after(60), {});
    network.send(link, std::make_shared<const Bytes>(
                           encode(Hello{client_name(i), agreement.method, agreement.base_sha256,
                                        classes_digest(agreement.classes), agreement.schema})));
    network.admit(link, size_t{1} << 30);
    const std::optional<Event> welcome = network.wait(after(60), {});
    if (!welcome || welcome->kind != Event::Kind::frame) throw Error("not let in");
  }
  SharedBytes update;
  int64_t round = -1;
  for (int left = clients; left > 0;) {
    const std::optional<Event> event = network.wait(after(600), {});
    if (!event || event->kind == Event::Kind::closed) {
      --left;
      continue;
    }
    const Message message =
        decode(event->frame, {"server", agreement.schema, agreement.classes.size()});
    if (const auto* asked = std::get_if<Round>(&message)) {
      if (asked->round != round) {
        Update reply;
        reply.round = round = asked->round;
        reply.samples = 100;
        reply.tensors = asked->tensors;
        update = std::make_shared<const Bytes>(encode(reply));
      }
      network.send(event->connection, update);
    } else if (const auto* last = std::get_if<Final>(&message)) {
      Metrics reply;
      reply.round = last->round;
      network.send(event->connection, std::make_shared<const Bytes>(encode(reply)));
    }
  }
  return 0;
}

// What the kernel holds for all TCP connections of the machine, both ends of ours included.
double kernel_tcp_mib() {
  std::ifstream file("/proc/net/sockstat");
  for (std::string word; file >> word && word != "TCP:";) {
  }
  double pages = 0;
  for (std::string word; file >> word && word != "mem";) {
  }
  file >> pages;
  return pages * double(sysconf(_SC_PAGESIZE)) / (1 << 20);
}

class Rounds : public ServerObserver {
 public:
  void round_started(int64_t, int64_t) override { begin_ = Clock::now(); }
  void round_aggregated(int64_t, const TensorMap&) override {
    seconds.push_back(std::chrono::duration<double>(Clock::now() - begin_).count());
  }
  void update_received(const ClientRound&) override {
    kernel_peak_mib = std::max(kernel_peak_mib, kernel_tcp_mib());
  }
  void client_round(const ClientRound& r) override { record = r; }
  std::vector<double> seconds;
  double kernel_peak_mib = 0;
  ClientRound record;

 private:
  Clock::time_point begin_;
};

// In a process of its own, so that the peak is this case's.
int measure(const Model& model, int clients) {
  const TensorMap theta = adapters(model);
  const Agreement agreement{
      RunConfig().method, sha256("base"), {"a", "b", "c", "d", "e"}, schema_of(theta)};
  RunConfig config;
  config.method = agreement.method;
  config.rounds = kRounds;
  config.federation.address = "127.0.0.1:0";
  config.federation.timeout_seconds = config.federation.join_timeout_seconds = 600;
  for (int i = 0; i < clients; ++i) config.federation.clients.push_back(client_name(i));

  int ports[2];
  if (pipe(ports) != 0) throw Error("pipe failed");
  const pid_t child = fork();  // before there is a thread
  if (child < 0) throw Error("fork failed");
  if (child == 0) {
    uint16_t port = 0;
    if (read(ports[0], &port, sizeof port) != sizeof port) std::_Exit(1);
    std::_Exit(answer(fmt::format("127.0.0.1:{}", port), agreement, clients));
  }
  Rounds rounds;
  ServerOptions options;
  options.transport.stall_seconds = 600;
  options.listening = [&](uint16_t port) {
    if (write(ports[1], &port, sizeof port) != sizeof port) throw Error("write failed");
  };
  const double before = peak_mib();
  serve(config, agreement, theta, rounds, options);
  int status = 0;
  waitpid(child, &status, 0);
  if (status != 0) throw Error("the clients failed");
  double load = 0;
  std::ifstream("/proc/loadavg") >> load;
  fmt::print(
      "{{\"schema\": \"orthofed-server/1\", \"bench\": \"server_round\", \"model\": \"{}\", "
      "\"clients\": {}, \"rounds\": {}, \"round_seconds_median\": {:.4f}, "
      "\"bytes_sent_by_a_client\": {}, \"whole_model_bytes\": {}, \"server_peak_mib\": {:.1f}, "
      "\"peak_mib_before\": {:.1f}, \"kernel_tcp_peak_mib\": {:.1f}, \"load_average\": {:.2f}}}\n",
      model.name, clients, kRounds, median(rounds.seconds), rounds.record.bytes_sent,
      model_bytes(model), peak_mib(), before, rounds.kernel_peak_mib, load);
  std::fflush(stdout);
  return 0;
}

}  // namespace
}  // namespace orthofed

int main(int argc, char** argv) {
  using namespace orthofed;
  const std::string only = argc > 1 ? argv[1] : "";
  bool known_case = only.empty();
  for (const Model& model : kModels)
    for (const int clients : kClients) known_case |= only == case_name(model, clients);
  if (argc > 2 || !known_case) {
    fmt::print(
        "usage: server_bench [CASE]   (1 to 1,000 clients on loopback; CASE: one only, as in "
        "vit_base:1000)\n");
    return only == "--help" ? 0 : 2;
  }
  rlimit files{};
  const bool known = getrlimit(RLIMIT_NOFILE, &files) == 0;
  files.rlim_cur = files.rlim_max;  // a thousand sockets are more than the usual soft limit
  if (!known || setrlimit(RLIMIT_NOFILE, &files) != 0) {
    std::perror("server_bench: RLIMIT_NOFILE");
    return 1;
  }
  for (const Model& model : kModels) {
    for (const int clients : kClients) {
      if (!only.empty() && only != case_name(model, clients)) continue;
      const pid_t child = fork();
      if (child == 0) {
        try {
          std::_Exit(measure(model, clients));
        } catch (const std::exception& e) {
          fmt::print(stderr, "server_bench: {}\n", e.what());
          std::_Exit(1);
        }
      }
      int status = 1;
      if (child < 0 || waitpid(child, &status, 0) != child || status != 0) return 1;
    }
  }
  return 0;
}
