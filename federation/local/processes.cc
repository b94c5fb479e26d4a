#include "federation/local/processes.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
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

// What a client said last, without the program's name.
std::string last_words(const std::string& log) {
  std::ifstream in(log);
  std::string line, last;
  while (std::getline(in, line))
    if (!line.empty()) last = line;
  const std::string name = "orthofed: ";
  return last.starts_with(name) ? last.substr(name.size()) : last;
}

// Process ids a signal handler can read; 0: free. Clients beyond them end by themselves, when they
// find that their server is gone.
std::array<std::atomic<pid_t>, 256> running{};
static_assert(std::atomic<pid_t>::is_always_lock_free);

void replace_running(pid_t from, pid_t to) {
  for (std::atomic<pid_t>& slot : running)
    if (pid_t expected = from; slot.compare_exchange_strong(expected, to)) return;
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
    replace_running(0, pid_);
  }
  ~Child() {
    if (ended_) return;
    ::kill(pid_, SIGTERM);
    for (int i = 0; i < 50 && !ended(); ++i) std::this_thread::sleep_for(20ms);
    if (ended_) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    replace_running(pid_, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  bool ended() {
    if (ended_) return true;
    const pid_t r = ::waitpid(pid_, &status_, WNOHANG);
    ended_ = r == pid_ || (r < 0 && errno != EINTR);
    if (ended_) replace_running(pid_, 0);
    return ended_;
  }
  void wait() {
    while (!ended()) std::this_thread::sleep_for(10ms);
  }
  bool succeeded() const { return ended_ && WIFEXITED(status_) && WEXITSTATUS(status_) == 0; }
  bool user_error() const { return ended_ && WIFEXITED(status_) && WEXITSTATUS(status_) == 2; }
  bool killed() const { return ended_ && WIFSIGNALED(status_); }
  std::string account() const {
    if (killed())
      return fmt::format("client '{}' was killed by signal {} ({})", name_, WTERMSIG(status_),
                         strsignal(WTERMSIG(status_)));
    const std::string words = last_words(log_);
    return words.empty()
               ? fmt::format("client '{}' ended with status {}", name_, WEXITSTATUS(status_))
               : fmt::format("client '{}': {}", name_, words);
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
  server.time = options.time;
  server.listening = [&](uint16_t port) {
    const std::string address = fmt::format("127.0.0.1:{}", port);
    const std::lock_guard lock(mutex);
    for (const std::string& client : config.federation.clients)
      children.push_back(std::make_unique<Child>(client, options.command(client, address),
                                                 options.log(client), options.threads));
  };
  // A client that ends before it should (no data, no model) would leave the server waiting for it.
  Child* first_to_fail = nullptr;
  std::jthread watcher([&](std::stop_token done) {
    while (!done.stop_requested() && first_to_fail == nullptr) {
      {
        const std::lock_guard lock(mutex);
        for (auto& child : children)
          if (child->ended() && !child->succeeded() && first_to_fail == nullptr)
            first_to_fail = child.get();
      }
      if (first_to_fail != nullptr)
        stop.request_stop();
      else
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
  } catch (const FederationError& error) {
    // The server names client and round. One that was killed, or that found a mistake of the user's
    // and kept its words to itself, has more to say.
    stop_watching();
    std::this_thread::sleep_for(200ms);
    for (auto& child : children) {
      if (!child->ended()) continue;
      if (child->user_error()) throw UserError(child->account());
      if (child->killed()) throw Error(fmt::format("{} ({})", child->account(), error.what()));
    }
    throw;
  } catch (const Cancelled&) {
    stop_watching();
    if (options.stop.stop_requested() || first_to_fail == nullptr) throw;
    if (first_to_fail->user_error()) throw UserError(first_to_fail->account());
    throw Error(first_to_fail->account());
  }
}

void end_clients_in_signal_handler() {
  for (const std::atomic<pid_t>& slot : running)
    if (const pid_t pid = slot.load(); pid != 0) ::kill(pid, SIGTERM);
}

}  // namespace orthofed
