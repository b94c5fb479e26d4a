// Tests start programs with a Process: from argument lists, without a shell, with both output
// streams in files; no process outlives its object.
#pragma once
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "kernels/core/check.h"

extern char** environ;

namespace orthofed::test {

inline std::string contents(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

// True as soon as `condition` is; false after `seconds`.
inline bool eventually(const std::function<bool()>& condition, double seconds = 120) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return true;
}

class Process {
 public:
  // Standard output and error go to the files streams + ".out" and streams + ".err".
  Process(std::vector<std::string> words, const std::string& streams)
      : out_(streams + ".out"), err_(streams + ".err") {
    posix_spawn_file_actions_t files;
    OF_CHECK(posix_spawn_file_actions_init(&files) == 0, "posix_spawn");
    const int write = O_WRONLY | O_CREAT | O_TRUNC;
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, 1, out_.c_str(), write, 0600);
    posix_spawn_file_actions_addopen(&files, 2, err_.c_str(), write, 0600);
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    const int error = posix_spawn(&pid_, argv[0], &files, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&files);
    OF_CHECK(error == 0, "cannot start " + words[0]);
  }
  ~Process() {
    if (ended_) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  void signal(int number) const { ::kill(pid_, number); }

  // Waits, 300 s at most; returns the exit status, or 128 + the signal that ended the process.
  int status() {
    int raw = 0;
    const bool done = ended_ || eventually(
                                    [&] {
                                      const pid_t r = ::waitpid(pid_, &raw, WNOHANG);
                                      return r == pid_ || (r < 0 && errno != EINTR);
                                    },
                                    300);
    OF_CHECK(done, "a process under test does not end");
    if (!ended_) status_ = WIFEXITED(raw) ? WEXITSTATUS(raw) : 128 + WTERMSIG(raw);
    ended_ = true;
    return status_;
  }
  std::string out() const { return contents(out_); }
  std::string err() const { return contents(err_); }

 private:
  std::string out_, err_;
  pid_t pid_ = -1;
  int status_ = -1;
  bool ended_ = false;
};

}  // namespace orthofed::test
