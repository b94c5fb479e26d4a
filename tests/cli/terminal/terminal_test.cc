#include "cli/terminal/terminal.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "engine/io/text.h"
#include "kernels/core/check.h"

namespace orthofed::cli {
namespace {

// A terminal whose clock and width the test holds.
struct Screen {
  std::ostringstream out;
  double now = 100;
  int width = 80;
  std::optional<Terminal> terminal;

  explicit Screen(Terminal::Mode mode, bool interactive, bool color = false) {
    terminal.emplace(out, Terminal::Settings{mode, interactive, color, [this] { return width; },
                                             [this] { return now; }});
  }
  std::string text() const { return out.str(); }
};

int count(const std::string& text, const std::string& what) {
  int n = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

// What a reader would see: '\r' starts the line anew, the escape clears to its end.
std::vector<std::string> lines_seen(const std::string& text) {
  std::vector<std::string> lines(1);
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\r') {
      lines.back().clear();
    } else if (text[i] == '\n') {
      lines.emplace_back();
    } else if (text[i] == '\x1b') {
      while (i < text.size() && !std::isalpha(static_cast<unsigned char>(text[i]))) ++i;
    } else {
      lines.back() += text[i];
    }
  }
  return lines;
}

TEST(Terminal, RedrawsTenTimesASecondAtMost) {
  Screen screen(Terminal::Mode::normal, true);
  Progress progress(*screen.terminal, "round 1/9", 1000);
  for (int i = 0; i < 1000; ++i) {
    screen.now += 0.001;
    progress.advance();
  }
  progress.finish();
  const int drawn = count(screen.text(), "\r");
  EXPECT_GE(drawn, 9);
  EXPECT_LE(drawn, 12);
  EXPECT_EQ(lines_seen(screen.text()),
            (std::vector<std::string>{
                "[###########################]  round 1/9  1000/1000 images  0:01  1000 "
                "images/s",
                ""}));
}

TEST(Terminal, ShowsRateAndTimeLeft) {
  Screen screen(Terminal::Mode::normal, true);
  screen.width = 120;
  Progress progress(*screen.terminal, "round 3/9, bccd", 214);
  screen.now += 2;
  progress.advance(48);
  EXPECT_EQ(
      lines_seen(screen.text()).back(),
      "[######........................]  round 3/9, bccd  48/214 images  0:02, 0:06 left  24.0 "
      "images/s");
}

TEST(Terminal, NeverWiderThanTheWindow) {
  for (int width = 0; width <= 130; ++width) {
    Screen screen(Terminal::Mode::normal, true);
    screen.width = width;
    Progress progress(*screen.terminal, "Runde 3/9, Zürich 東京", 214);
    screen.now += 2;
    progress.advance(48);
    for (const std::string& line : lines_seen(screen.text()))
      EXPECT_LE(display_width(line), std::max(0, width - 1)) << line;
  }
}

TEST(Terminal, MessagesStandAboveTheProgressLine) {
  Screen screen(Terminal::Mode::normal, true);
  screen.width = 30;
  Progress progress(*screen.terminal, "round 1/2", 10);
  screen.terminal->message("client bccd joined");
  screen.terminal->warning("slow");
  EXPECT_EQ(lines_seen(screen.text()),
            (std::vector<std::string>{"client bccd joined", "warning: slow",
                                      "round 1/2  0/10 images  0:00"}));
}

TEST(Terminal, AnExceptionLeavesNoBrokenLine) {
  Screen screen(Terminal::Mode::normal, true);
  screen.width = 30;
  try {
    Progress progress(*screen.terminal, "round 1/2", 10);
    progress.advance(3);
    throw std::runtime_error("client died");
  } catch (const std::runtime_error& error) {
    screen.terminal->message(error.what());
  }
  EXPECT_EQ(lines_seen(screen.text()),
            (std::vector<std::string>{"round 1/2  3/10 images  0:00", "client died", ""}));
}

TEST(Terminal, PlainLinesNowAndThenWhereItIsNoTerminal) {
  Screen screen(Terminal::Mode::normal, false);
  Progress progress(*screen.terminal, "round 1/9", 3000);
  for (int i = 0; i < 3000; ++i) {
    screen.now += 0.01;
    progress.advance();
  }
  progress.finish();
  EXPECT_EQ(count(screen.text(), "\r") + count(screen.text(), "\x1b"), 0);
  EXPECT_LE(count(screen.text(), "\n"), 4);
  EXPECT_GE(count(screen.text(), "\n"), 3);
  EXPECT_NE(screen.text().find("round 1/9  3000/3000 images  0:30  100 images/s\n"),
            std::string::npos)
      << screen.text();
}

TEST(Terminal, TheEndIsSaidOnce) {
  for (const auto mode : {Terminal::Mode::normal, Terminal::Mode::json}) {
    Screen screen(mode, false);
    Progress progress(*screen.terminal, "round 1/9", 10);
    screen.now += 60;
    progress.advance(10);
    progress.set_label("all rounds");
    progress.finish();
    EXPECT_EQ(count(screen.text(), "\n"), 1) << screen.text();
    EXPECT_NE(screen.text().find("all rounds"), std::string::npos) << screen.text();
  }
}

TEST(Terminal, QuietSaysWarningsOnly) {
  for (const bool interactive : {false, true}) {
    Screen screen(Terminal::Mode::quiet, interactive);
    {
      Progress progress(*screen.terminal, "round 1/9", 10);
      screen.now += 60;
      progress.advance(10);
      screen.terminal->message("client joined");
      screen.terminal->warning("disk is nearly full");
      progress.finish();
    }
    EXPECT_EQ(screen.text(), "warning: disk is nearly full\n");
  }
}

TEST(Terminal, JsonIsOneObjectALine) {
  Screen screen(Terminal::Mode::json, true, true);
  Progress progress(*screen.terminal, "round \"1\"", 10);
  progress.advance(4);
  screen.terminal->message("a\nb");
  screen.terminal->warning("w");
  screen.now += 2;
  progress.finish();
  EXPECT_EQ(screen.text(),
            "{\"event\": \"message\", \"text\": \"a\\nb\"}\n"
            "{\"event\": \"warning\", \"text\": \"w\"}\n"
            "{\"event\": \"progress\", \"label\": \"round \\\"1\\\"\", \"done\": 4, \"total\": 10, "
            "\"unit\": \"images\", \"seconds\": 2.000}\n");
}

TEST(Terminal, ColourOnlyWhereItIsAskedFor) {
  for (const bool color : {false, true}) {
    Screen screen(Terminal::Mode::normal, true, color);
    screen.terminal->warning("w");
    EXPECT_EQ(count(screen.text(), "\x1b[3"), color ? 1 : 0);
  }
}

TEST(Terminal, WithoutATotalOrAnythingDone) {
  Screen screen(Terminal::Mode::normal, false);
  Progress progress(*screen.terminal, "reading", 0, "files");
  progress.advance(3);
  screen.now += 1;
  progress.finish();
  progress.finish();
  progress.advance();
  EXPECT_EQ(screen.text(), "reading  3 files  0:01  3.00 files/s\n");
}

TEST(Terminal, OneProgressAtATime) {
  Screen screen(Terminal::Mode::normal, false);
  Progress first(*screen.terminal, "a", 1);
  EXPECT_THROW(Progress(*screen.terminal, "b", 1), Error);
  first.finish();
  EXPECT_NO_THROW(Progress(*screen.terminal, "b", 1));
}

TEST(Terminal, SeveralThreads) {
  Screen screen(Terminal::Mode::normal, true);
  Progress progress(*screen.terminal, "all", 4000);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) {
        progress.advance();
        if (i % 100 == 0) screen.terminal->message("tick");
      }
    });
  for (std::thread& thread : threads) thread.join();
  progress.finish();
  const auto lines = lines_seen(screen.text());
  ASSERT_EQ(lines.size(), 42u);
  for (size_t i = 0; i < 40; ++i) EXPECT_EQ(lines[i], "tick");
  EXPECT_NE(lines[40].find("4000/4000"), std::string::npos);
}

}  // namespace
}  // namespace orthofed::cli
