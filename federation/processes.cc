#include "federation/processes.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>

extern char** environ;

namespace orthofed {
namespace {

using namespace std::chrono_literals;

std::string last_line(const std::string& path) {
  std::ifstream in(path);
  std::string line, last;
  while (std::getline(in, line))
    if (!line.empty()) last = line;
  return last;
}

// The environment with libgomp told to sleep while it waits (it spins otherwise, and several
// processes on few cores then slow each other down) and to take this many threads. It must be set
// before the process starts: the library reads it when it is loaded.
std::vector<std::string> environment(int64_t threads) {
  std::vector<std::string> all = {"OMP_WAIT_POLICY=passive",
                                  "OMP_NUM_THREADS=" + std::to_string(threads)};
  for (char** e = environ; *e != nullptr; ++e)
    if (std::strncmp(*e, "OMP_WAIT_POLICY=", 16) != 0 &&
        std::strncmp(*e, "OMP_NUM_THREADS=", 16) != 0)
      all.emplace_back(*e);
  return all;
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> p;
  for (std::string& w : words) p.push_back(w.data());
  p.push_back(nullptr);
  return p;
}

class Child {
 public:
  Child(std::string name, std::vector<std::string> command, std::string log, int64_t threads)
      : name_(std::move(name)), log_(std::move(log)) {
    posix_spawn_file_actions_t files;
    if (posix_spawn_file_actions_init(&files) != 0) throw Error("posix_spawn: out of memory");
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&files, 2, log_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    std::vector<std::string> env = environment(threads);
    const int error = posix_spawn(&pid_, command.front().c_str(), &files, nullptr,
                                  pointers(command).data(), pointers(env).data());
    posix_spawn_file_actions_destroy(&files);
    if (error != 0)
      throw Error(fmt::format("cannot start client '{}' ({}): {}", name_, command.front(),
                              std::strerror(error)));
  }
  ~Child() {
    if (ended_) return;
    ::kill(pid_, SIGTERM);
    for (int i = 0; i < 50 && !ended(); ++i) std::this_thread::sleep_for(20ms);
    if (ended_) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  bool ended() {
    if (ended_) return true;
    const pid_t r = ::waitpid(pid_, &status_, WNOHANG);
    ended_ = r == pid_ || (r < 0 && errno != EINTR);
    return ended_;
  }
  void wait() {
    while (!ended()) std::this_thread::sleep_for(10ms);
  }
  bool succeeded() const { return ended_ && WIFEXITED(status_) && WEXITSTATUS(status_) == 0; }
  bool user_error() const { return ended_ && WIFEXITED(status_) && WEXITSTATUS(status_) == 2; }
  std::string account() const {
    const std::string why = WIFSIGNALED(status_)
                                ? fmt::format("was killed by signal {}", WTERMSIG(status_))
                                : fmt::format("ended with status {}", WEXITSTATUS(status_));
    const std::string words = last_line(log_);
    return fmt::format("client '{}' {}{}", name_, why, words.empty() ? "" : ": " + words);
  }

 private:
  std::string name_, log_;
  pid_t pid_ = -1;
  int status_ = 0;
  bool ended_ = false;
};

}  // namespace

FederationResult run_processes(const RunConfig& given, const Agreement& agreement,
                               const TensorMap& initial, ServerObserver& observer,
                               const ProcessOptions& options) {
  RunConfig config = given;
  config.federation.address = "127.0.0.1:0";

  std::vector<std::unique_ptr<Child>> children;  // touched by the watcher between start and join
  std::mutex mutex;
  std::stop_source stop;
  const std::stop_callback forward(options.stop, [&] { stop.request_stop(); });

  ServerOptions server;
  server.stop = stop.get_token();
  server.listening = [&](uint16_t port) {
    const std::string address = fmt::format("127.0.0.1:{}", port);
    const std::lock_guard lock(mutex);
    for (const std::string& client : config.federation.clients)
      children.push_back(std::make_unique<Child>(client, options.command(client, address),
                                                 options.log(client), options.threads));
  };
  // A client that ends before it should (no data, no model) would leave the server waiting for it.
  std::jthread watcher([&](std::stop_token done) {
    while (!done.stop_requested()) {
      {
        const std::lock_guard lock(mutex);
        for (auto& child : children)
          if (child->ended() && !child->succeeded()) stop.request_stop();
      }
      std::this_thread::sleep_for(50ms);
    }
  });
  auto stop_watching = [&] {
    watcher.request_stop();
    watcher.join();
  };
  try {
    FederationResult result = serve(config, agreement, initial, observer, server);
    stop_watching();
    for (auto& child : children) {
      child->wait();
      if (!child->succeeded()) throw Error(child->account());
    }
    return result;
  } catch (const Error&) {
    if (watcher.joinable()) stop_watching();
    if (options.stop.stop_requested()) throw;
    // The others end because one did: name the one that was at fault, a user's mistake first.
    std::this_thread::sleep_for(200ms);
    for (auto& child : children)
      if (child->ended() && child->user_error()) throw UserError(child->account());
    for (auto& child : children)
      if (child->ended() && !child->succeeded() && stop.stop_requested())
        throw Error(child->account());
    throw;
  }
}

}  // namespace orthofed
