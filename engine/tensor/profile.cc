#include "engine/tensor/profile.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <map>

#include "engine/tensor/allocator.h"
#include "engine/tensor/device.h"
#include "engine/tensor/watch.h"
#include "kernels/core/cuda_device.h"

namespace orthofed {
namespace {

thread_local Profile* current = nullptr;

int64_t host_now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// "blocks.3.attn.qkv.weight" -> "attn.qkv": what all layers of a kind share.
std::string kind_of_layer(const std::string& name) {
  std::string kind;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    const bool number = part.find_first_not_of("0123456789") == std::string::npos;
    if (!number && part != "blocks" && part != "weight") kind += (kind.empty() ? "" : ".") + part;
    begin = end + 1;
  }
  return kind;
}

// A name from a file may hold anything.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 0x20)
      out += fmt::format("\\u{:04x}", int(c));
    else
      out += c;
  }
  return out + '"';
}

}  // namespace

Profile* profiling() {
  return current;
}

Profile::Profile(const Queue& queue, const Ceilings& ceilings, int64_t steps)
    : device_(queue.device), ceilings_(ceilings), wanted_(steps) {
#ifdef OF_HAVE_CUDA
  if (device_ == Device::cuda) timeline_ = std::make_shared<cuda::Timeline>(queue.cuda);
#endif
}

Profile::~Profile() {
  finish();
}

void Profile::step() {
  finish();
  if (started_++ < kWarmUp || measured_ == wanted_) return;
  current = this;
  watch_calls(this);
  step_began_ = host_now();
  step_event_ = open(Kind::part, "step");
}

void Profile::finish() {
  if (current != this) return;
  close(step_event_);
  settle();
  ++measured_;
  current = nullptr;
  watch_calls(nullptr);
}

int64_t Profile::now() {
#ifdef OF_HAVE_CUDA
  if (timeline_ != nullptr) return timeline_->mark();
#endif
  return host_now();
}

void Profile::settle() {
#ifdef OF_HAVE_CUDA
  if (timeline_ == nullptr) return;
  const std::vector<double> seconds = timeline_->take();
  const auto ns = [&](int64_t mark) {
    return step_began_ + std::llround(1e9 * seconds.at(size_t(mark)));
  };
  for (size_t i = size_t(step_event_); i < events_.size(); ++i) {
    events_[i].begin = ns(events_[i].begin);
    events_[i].end = ns(events_[i].end);
  }
#endif
}

int64_t Profile::open(Kind kind, std::string name, const Cost& cost) {
  events_.push_back({kind, std::move(name), {}, 0, 0, innermost_, cost});
  innermost_ = int64_t(events_.size()) - 1;
#ifdef OF_HAVE_CUDA
  if (timeline_ != nullptr) cuda::begin_range(events_.back().name.c_str());
#endif
  events_.back().begin = now();
  return innermost_;
}

void Profile::close(int64_t event) {
  Event& e = events_[size_t(event)];
  e.end = now();
  innermost_ = e.within;
#ifdef OF_HAVE_CUDA
  if (timeline_ != nullptr) cuda::end_range();
#endif
}

void Profile::begin(const char* kernel) {
  kernel_ = kernel;
  sizes_.clear();
  lists_.clear();
}

void* Profile::pointer(const void* p, DType, bool) {
  return const_cast<void*>(p);  // only looked at for being null
}

std::span<std::byte> Profile::list(const void* p) {
  const BlockOfMemory block = block_of(p, device_);
  OF_CHECK(block.begin != nullptr, kernel_ + ": a list outside the engine's memory");
  const auto* from = static_cast<const std::byte*>(p);
  const size_t bytes = block.bytes - size_t(from - static_cast<const std::byte*>(block.begin));
  std::vector<std::byte>& copy = lists_.emplace_back(bytes);
  if (device_ == Device::cpu)
    std::memcpy(copy.data(), from, bytes);
  else
    copy_rows(copy.data(), Device::cpu, bytes, from, device_, bytes, bytes, 1);
  return copy;
}

void Profile::number(int64_t value) {
  sizes_ += fmt::format("{}{}", sizes_.empty() ? "" : " ", value);
}

void Profile::run(const Cost& cost) {
  const int64_t event = open(Kind::work, kernel_, cost);
  events_[size_t(event)].sizes = sizes_;
}

bool Profile::ran() {
  close(innermost_);
  return false;
}

double Profile::step_seconds() const {
  double sum = 0;
  for (const Event& e : events_)
    if (e.within < 0 && e.end != 0) sum += 1e-9 * double(e.end - e.begin);
  return measured_ > 0 ? sum / double(measured_) : 0;
}

std::vector<Profile::Row> Profile::rows() const {
  std::vector<int64_t> own;  // ns of each event, without what it encloses
  for (const Event& e : events_) {
    own.push_back(e.end - e.begin);
    if (e.within >= 0) own[size_t(e.within)] -= e.end - e.begin;
  }
  std::map<std::pair<std::string, std::string>, Row> found;
  Row between{"between kernels", "", 0, 0, {}};
  for (size_t i = 0; i < events_.size(); ++i) {
    const Event& e = events_[i];
    if (e.kind == Kind::part) {
      between.seconds += 1e-9 * double(own[i]);
      continue;
    }
    // "backward attn.qkv": what encloses it, below the step.
    std::string where;
    for (int64_t p = e.within; p >= 0 && events_[size_t(p)].within >= 0;
         p = events_[size_t(p)].within)
      where = kind_of_layer(events_[size_t(p)].name) + (where.empty() ? "" : " ") + where;
    Row& row = found[{e.name, where}];
    row.name = e.name;
    row.where = where;
    row.calls += 1;
    row.seconds += 1e-9 * double(own[i]);
    row.cost += e.cost;
  }
  std::vector<Row> all;
  for (auto& [key, row] : found) all.push_back(std::move(row));
  std::stable_sort(all.begin(), all.end(),
                   [](const Row& a, const Row& b) { return a.seconds > b.seconds; });
  all.push_back(between);
  const double n = double(std::max<int64_t>(1, measured_));
  for (Row& row : all) {
    row.calls /= n;
    row.seconds /= n;
    row.cost = {row.cost.flops / n, row.cost.bytes / n};
  }
  return all;
}

std::string Profile::table() const {
  const double step = step_seconds();
  std::string out = fmt::format("{:<26} {:<24} {:>6} {:>9} {:>6} {:>7} {:>8} {:>9}\n", "kernel",
                                "in", "calls", "ms", "% step", "GB/s", "GFLOP/s", "% ceiling");
  const auto line = [&](const Row& r) {
    out += fmt::format("{:<26} {:<24} {:>6.0f} {:>9.3f} {:>6.1f}", r.name, r.where, r.calls,
                       1e3 * r.seconds, step > 0 ? 100 * r.seconds / step : 0);
    if (r.cost.bytes > 0 && r.seconds > 0)
      out +=
          fmt::format(" {:>7.1f} {:>8.1f} {:>9.0f}", 1e-9 * r.cost.bytes / r.seconds,
                      1e-9 * r.cost.flops / r.seconds, 100 * ceilings_.seconds(r.cost) / r.seconds);
    out += '\n';
  };
  Row small;  // what would fill the page and explain nothing
  int64_t kinds = 0;
  const std::vector<Row> all = rows();
  for (size_t i = 0; i + 1 < all.size(); ++i) {
    if (all[i].seconds >= 0.002 * step) {
      line(all[i]);
      continue;
    }
    ++kinds;
    small.calls += all[i].calls;
    small.seconds += all[i].seconds;
  }
  small.name = fmt::format("{} more, each below 0.2 %", kinds);
  if (kinds > 0) line(small);
  line(all.back());
  line({"step", "", 1, step, {}});
  out += fmt::format(
      "mean of {} {} on device {}{}; ceilings measured here: {:.1f} GB/s of copying, {:.1f} "
      "GFLOP/s of matrix products\n",
      measured_, measured_ == 1 ? "step" : "steps", name_of(device_),
      device_ == Device::simt ? " (an emulator's times)" : "", 1e-9 * ceilings_.bytes,
      1e-9 * ceilings_.flops);
  return out;
}

std::string Profile::trace_json() const {
  std::string out = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [";
  const int64_t zero = events_.empty() ? 0 : events_.front().begin;
  bool first = true;
  for (const Event& e : events_) {
    // Microseconds, with all digits: neighbours must not overlap.
    out += fmt::format(
        "{}\n{{\"name\": {}, \"cat\": \"{}\", \"ph\": \"X\", \"pid\": 1, \"tid\": 1, "
        "\"ts\": {}.{:03}, \"dur\": {}.{:03}",
        first ? "" : ",", quoted(e.name), e.kind == Kind::part ? "part" : "work",
        (e.begin - zero) / 1000, (e.begin - zero) % 1000, (e.end - e.begin) / 1000,
        (e.end - e.begin) % 1000);
    if (e.kind == Kind::work)
      out += fmt::format(", \"args\": {{\"sizes\": {}, \"flops\": {:.0f}, \"bytes\": {:.0f}}}",
                         quoted(e.sizes), e.cost.flops, e.cost.bytes);
    out += '}';
    first = false;
  }
  return out + "\n]}\n";
}

}  // namespace orthofed
