// Where the wall time of a run goes. A Stopwatch charges every moment to exactly one activity, so
// its parts add up to the time since it was made.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>

namespace orthofed {

enum class Activity : uint8_t {
  set_up,         // loading the model, decoding images
  joining,        // until the first round: finding the server, waiting for the other clients
  training,       // a client's
  evaluation,     // a client's
  aggregation,    // the server's
  saving,         // adapters, the optimiser's state, the log
  communication,  // encoding, decoding and checking frames, and waits in which one is on its way
  waiting,        // a client: for the server, and through it the others; the server: for clients
  other,
};
constexpr std::array kActivities = {
    Activity::set_up,        Activity::joining,     Activity::training,
    Activity::evaluation,    Activity::aggregation, Activity::saving,
    Activity::communication, Activity::waiting,     Activity::other};
const char* name_of(Activity activity);  // "set_up"

struct TimeSplit {
  std::array<double, kActivities.size()> seconds{};  // of each activity

  double& operator[](Activity a) { return seconds[size_t(a)]; }
  double operator[](Activity a) const { return seconds[size_t(a)]; }
  double total() const;
  TimeSplit& operator+=(const TimeSplit& more);
  TimeSplit& operator-=(const TimeSplit& less);
};

// Of one thread at a time. A copy goes on from where the original is.
class Stopwatch {
 public:
  explicit Stopwatch(Activity first = Activity::set_up) : activity_(first) {}

  // From now on. Returns what it was.
  Activity turn_to(Activity next);
  // That much of what was charged to the present activity is another's.
  void reassign(Activity to, std::chrono::nanoseconds time);
  TimeSplit split() const;  // up to now

 private:
  using Clock = std::chrono::steady_clock;
  void charge();

  Activity activity_;
  Clock::time_point since_ = Clock::now();
  std::array<std::chrono::nanoseconds, kActivities.size()> parts_{};
};

// An activity for as long as this lives; then the one before goes on. Null: nobody measures.
class Spending {
 public:
  Spending(Stopwatch* time, Activity activity) : time_(time) {
    if (time_ != nullptr) before_ = time_->turn_to(activity);
  }
  ~Spending() {
    if (time_ != nullptr) time_->turn_to(before_);
  }
  Spending(const Spending&) = delete;
  Spending& operator=(const Spending&) = delete;

 private:
  Stopwatch* time_;
  Activity before_{};
};

}  // namespace orthofed
