#include "engine/time/stopwatch.h"

#include <numeric>
#include <utility>

namespace orthofed {

const char* name_of(Activity activity) {
  switch (activity) {
    case Activity::set_up:
      return "set_up";
    case Activity::joining:
      return "joining";
    case Activity::training:
      return "training";
    case Activity::evaluation:
      return "evaluation";
    case Activity::aggregation:
      return "aggregation";
    case Activity::saving:
      return "saving";
    case Activity::communication:
      return "communication";
    case Activity::waiting:
      return "waiting";
    case Activity::other:
      return "other";
  }
  return "?";
}

double TimeSplit::total() const {
  return std::accumulate(seconds.begin(), seconds.end(), 0.0);
}

TimeSplit& TimeSplit::operator+=(const TimeSplit& more) {
  for (const Activity a : kActivities) (*this)[a] += more[a];
  return *this;
}

TimeSplit& TimeSplit::operator-=(const TimeSplit& less) {
  for (const Activity a : kActivities) (*this)[a] -= less[a];
  return *this;
}

void Stopwatch::charge() {
  const Clock::time_point now = Clock::now();
  parts_[size_t(activity_)] += now - since_;
  since_ = now;
}

Activity Stopwatch::turn_to(Activity next) {
  charge();
  return std::exchange(activity_, next);
}

void Stopwatch::reassign(Activity to, std::chrono::nanoseconds time) {
  charge();
  parts_[size_t(activity_)] -= time;
  parts_[size_t(to)] += time;
}

TimeSplit Stopwatch::split() const {
  Stopwatch now = *this;
  now.charge();
  TimeSplit split;
  for (const Activity a : kActivities)
    split[a] = std::chrono::duration<double>(now.parts_[size_t(a)]).count();
  return split;
}

}  // namespace orthofed
