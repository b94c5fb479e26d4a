// What a command says while it works, on standard error: messages and one progress line. Results go
// to standard output and never pass through here.
//
//   normal, on a terminal   the progress line is redrawn in place, at most ten times a second
//   normal, elsewhere       a plain line every ten seconds and at the end
//   quiet                   warnings only
//   json                    one JSON object per line: {"event": E, ...}, E being message, warning
//                           or progress
//
// Colour only on a terminal, and never where NO_COLOR is set (https://no-color.org) or TERM=dumb.
// All members may be called from several threads.
#pragma once
#include <cstdint>
#include <functional>
#include <mutex>
#include <ostream>
#include <string>

namespace orthofed::cli {

// The options that every command has.
struct GlobalOptions {
  // --quiet: warnings and errors only; eval, report, doctor and config still print what they were
  // asked for.
  bool quiet = false;
  // --json: the result as one JSON object on stdout, events as JSON lines on stderr.
  bool json = false;
};

class Terminal {
 public:
  enum class Mode { normal, quiet, json };
  struct Settings {
    Mode mode = Mode::normal;
    bool interactive = false;  // is it a terminal, so that a line can be redrawn?
    bool color = false;
    std::function<int()> width;       // columns now; the window may be resized
    std::function<double()> seconds;  // a steady clock
  };

  explicit Terminal(const GlobalOptions& options);  // standard error as it is
  Terminal(std::ostream& out, Settings settings);   // `out` outlives it
  Terminal(const Terminal&) = delete;

  Mode mode() const { return settings_.mode; }
  void message(const std::string& text);  // one line, above the progress line
  void warning(const std::string& text);

 private:
  friend class Progress;
  void say(const std::string& event, const std::string& prefix, const std::string& text);
  void draw();   // the progress line, in place; mutex_ held
  void erase();  // the progress line; mutex_ held

  std::ostream& out_;
  Settings settings_;
  std::mutex mutex_;
  class Progress* progress_ = nullptr;  // the one that is under way
};

// A piece of work that is counted; a terminal shows one at a time. When it is destroyed, also by an
// exception, the line it stands on is ended.
class Progress {
 public:
  Progress(Terminal& terminal, std::string label, int64_t total, std::string unit = "images");
  ~Progress();
  Progress(const Progress&) = delete;

  void advance(int64_t count = 1);
  void set_label(std::string label);  // "round 3/9, bccd"
  void finish();                      // leaves the last state behind as a line of its own

 private:
  friend class Terminal;
  void update(bool now);              // mutex held
  std::string line(int width) const;  // what fits into `width` columns

  Terminal& terminal_;
  std::string label_, unit_;
  int64_t total_, done_ = 0;
  double start_, last_shown_;
  bool finished_ = false;
};

// Ends a progress line that stands unfinished on standard error. It only writes, as the handler of a
// signal may.
void end_progress_line_in_signal_handler();

}  // namespace orthofed::cli
