#include "cli/terminal/terminal.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <iostream>

#include "cli/terminal/units.h"
#include "engine/io/text.h"
#include "kernels/core/check.h"

namespace orthofed::cli {

namespace {

constexpr double redraw_seconds = 0.1;
constexpr double plain_seconds = 10;
constexpr int narrowest_bar = 10, widest_bar = 30;

// 1 while standard error shows a line that no '\n' has ended.
volatile std::sig_atomic_t line_is_open = 0;

bool is_set(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && *value != '\0';
}

int terminal_width() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Terminal::Settings settings_of_stderr(const GlobalOptions& options) {
  const char* term = std::getenv("TERM");
  const bool dumb = term != nullptr && std::strcmp(term, "dumb") == 0;
  Terminal::Settings settings;
  settings.mode = options.json    ? Terminal::Mode::json
                  : options.quiet ? Terminal::Mode::quiet
                                  : Terminal::Mode::normal;
  settings.interactive = isatty(STDERR_FILENO) == 1 && !dumb;
  settings.color = settings.interactive && !is_set("NO_COLOR");
  settings.width = terminal_width;
  settings.seconds = steady_seconds;
  return settings;
}

}  // namespace

void end_progress_line_in_signal_handler() {
  if (line_is_open == 0) return;
  line_is_open = 0;
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, "\n", 1);
}

Terminal::Terminal(const GlobalOptions& options)
    : Terminal(std::cerr, settings_of_stderr(options)) {}

Terminal::Terminal(std::ostream& out, Settings settings)
    : out_(out), settings_(std::move(settings)) {
  OF_CHECK(settings_.width && settings_.seconds, "a terminal needs a width and a clock");
}

void Terminal::message(const std::string& text) {
  if (settings_.mode != Mode::quiet) say("message", "", text);
}

void Terminal::warning(const std::string& text) {
  say("warning", settings_.color ? "\x1b[33mwarning:\x1b[0m " : "warning: ", text);
}

void Terminal::say(const std::string& event, const std::string& prefix, const std::string& text) {
  const std::lock_guard lock(mutex_);
  if (settings_.mode == Mode::json) {
    out_ << fmt::format("{{\"event\": {}, \"text\": {}}}\n", string_literal(event),
                        string_literal(text));
  } else {
    erase();
    out_ << prefix + text + '\n';
    draw();
  }
  out_.flush();
}

void Terminal::erase() {
  if (progress_ == nullptr || !settings_.interactive || settings_.mode != Mode::normal) return;
  out_ << "\r\x1b[K";
}

void Terminal::draw() {
  if (progress_ == nullptr || !settings_.interactive || settings_.mode != Mode::normal) return;
  // One column stays free: a full last column would wrap on some terminals.
  out_ << fmt::format("\r{}\x1b[K", progress_->line(settings_.width() - 1));
  out_.flush();
  line_is_open = 1;
}

Progress::Progress(Terminal& terminal, std::string label, int64_t total, std::string unit)
    : terminal_(terminal),
      label_(std::move(label)),
      unit_(std::move(unit)),
      total_(std::max<int64_t>(total, 0)),
      start_(terminal.settings_.seconds()),
      last_shown_(start_) {
  const std::lock_guard lock(terminal_.mutex_);
  OF_CHECK(terminal_.progress_ == nullptr, "a terminal shows one progress line at a time");
  terminal_.progress_ = this;
  terminal_.draw();
}

Progress::~Progress() {
  const std::lock_guard lock(terminal_.mutex_);
  if (finished_) return;
  if (terminal_.settings_.interactive && terminal_.settings_.mode == Terminal::Mode::normal) {
    terminal_.draw();
    terminal_.out_ << '\n';
    terminal_.out_.flush();
    line_is_open = 0;
  }
  terminal_.progress_ = nullptr;
}

void Progress::advance(int64_t count) {
  const std::lock_guard lock(terminal_.mutex_);
  done_ += count;
  update(false);
}

void Progress::set_label(std::string label) {
  const std::lock_guard lock(terminal_.mutex_);
  label_ = std::move(label);
  update(false);
}

void Progress::finish() {
  const std::lock_guard lock(terminal_.mutex_);
  if (finished_) return;
  update(true);
  if (terminal_.settings_.interactive && terminal_.settings_.mode == Terminal::Mode::normal) {
    terminal_.out_ << '\n';
    terminal_.out_.flush();
    line_is_open = 0;
  }
  finished_ = true;
  terminal_.progress_ = nullptr;
}

void Progress::update(bool now) {
  if (finished_ || terminal_.settings_.mode == Terminal::Mode::quiet) return;
  const bool json = terminal_.settings_.mode == Terminal::Mode::json;
  const bool redraw = terminal_.settings_.interactive && !json;
  if (!now && !redraw && total_ > 0 && done_ >= total_) return;  // finish() says it, once
  const double seconds = terminal_.settings_.seconds();
  if (!now && seconds - last_shown_ < (redraw ? redraw_seconds : plain_seconds)) return;
  last_shown_ = seconds;
  if (redraw) {
    terminal_.draw();
    return;
  }
  if (json) {
    terminal_.out_ << fmt::format(
        "{{\"event\": \"progress\", \"label\": {}, \"done\": {}, \"total\": {}, \"unit\": {}, "
        "\"seconds\": {:.3f}}}\n",
        string_literal(label_), done_, total_, string_literal(unit_), seconds - start_);
  } else {
    terminal_.out_ << line(INT16_MAX) + '\n';
  }
  terminal_.out_.flush();
}

std::string Progress::line(int width) const {
  const double elapsed = terminal_.settings_.seconds() - start_;
  const double rate = elapsed > 0 ? static_cast<double>(done_) / elapsed : 0;
  const bool complete = done_ >= total_;
  const std::string count = total_ > 0 ? fmt::format("{}/{} {}", done_, total_, unit_)
                                       : fmt::format("{} {}", done_, unit_);
  const std::string speed = rate > 0 ? fmt::format("{} {}/s", format_rate(rate), unit_) : "";
  std::string time = format_clock(elapsed);
  if (rate > 0 && !complete)
    time += fmt::format(", {} left", format_clock(static_cast<double>(total_ - done_) / rate));

  // The parts by importance: what does not fit is left out, the least important first.
  std::string text = label_;
  for (const std::string& part : {count, time, speed}) {
    if (part.empty()) continue;
    if (display_width(text) + 2 + display_width(part) > width) break;
    text += "  " + part;
  }
  text = fit(text, width);

  // A bar takes what is left of the line, on a terminal.
  const int left = std::min(widest_bar, width - display_width(text) - 4);
  if (!terminal_.settings_.interactive || total_ <= 0 || left < narrowest_bar) return text;
  const double share = std::clamp(static_cast<double>(done_) / static_cast<double>(total_), 0., 1.);
  const auto filled = static_cast<size_t>(share * left);
  const std::string full(filled, '#'), rest(static_cast<size_t>(left) - filled, '.');
  const std::string bar =
      terminal_.settings_.color ? "\x1b[36m" + full + "\x1b[2m" + rest + "\x1b[0m" : full + rest;
  return fmt::format("[{}]  {}", bar, text);
}

}  // namespace orthofed::cli
