#include "bench/support/record.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <thread>

#include "kernels/core/check.h"
#include "kernels/core/parallel.h"

namespace orthofed::bench {
namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return out + '"';
}

std::string cpu_name() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "unknown";
}

double load_average() {
  double load = NAN;
  std::ifstream("/proc/loadavg") >> load;
  return load;
}

std::string& record_file() {
  static std::string path;
  return path;
}

}  // namespace

Json& Json::member(const char* name, const std::string& json) {
  members_ += (members_.empty() ? "\"" : ", \"") + std::string(name) + "\": " + json;
  return *this;
}
Json& Json::text(const char* name, const std::string& value) {
  return member(name, quoted(value));
}
Json& Json::number(const char* name, double value) {
  if (!std::isfinite(value)) return null(name);
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.9g", value);
  return member(name, digits);
}
Json& Json::null(const char* name) {
  return member(name, "null");
}
Json& Json::object(const char* name, const Json& value) {
  return member(name, value.str());
}

Json host_record(const std::string& gpu) {
  Json host;
  host.text("cpu", cpu_name())
      .number("cores", std::thread::hardware_concurrency())
      .number("threads", cpu::threads())
      .text("isa", cpu::name_of(cpu::isa()))
      .number("load", load_average());
  return gpu.empty() ? host.null("gpu") : host.text("gpu", gpu);
}

void set_record_file(const std::string& path) {
  record_file() = path;
  if (!std::ofstream(path, std::ios::app)) throw UserError("cannot write records to " + path);
}

void write_record(const Json& record) {
  if (record_file().empty()) return;
  std::ofstream out(record_file(), std::ios::app);
  out << record.str() << '\n' << std::flush;
  if (!out) throw UserError("cannot write records to " + record_file());
}

std::string utc_time() {
  const std::time_t now = std::time(nullptr);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  return text;
}

int64_t last_level_cache() {
#ifdef _SC_LEVEL3_CACHE_SIZE
  for (const int level : {_SC_LEVEL3_CACHE_SIZE, _SC_LEVEL2_CACHE_SIZE})
    if (const long bytes = sysconf(level); bytes > 0) return bytes;
#endif
  return int64_t{32} << 20;  // unknown: what a desktop has
}

}  // namespace orthofed::bench
