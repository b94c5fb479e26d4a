// A benchmark's records are one JSON object per line, of schema orthofed-bench/1:
//
//   schema, time (UTC), commit (OF_COMMIT, or null)
//   host: cpu, cores, threads, isa, load (average over the last minute, or null), gpu (or null)
//   ceilings: gflops, gbs (or null where they have not been measured)
//   device, kernel ("softmax/forward"), provider ("orthofed", or a peer's name), model (vit.h)
//   shape: names and numbers; dtype; mode ("cold" or "hot")
//   flops, bytes: of one run, from the kernel's contract
//   time_us: p20, p50, p80, n (samples); gflops, gbs: at p50
//   bound: the ceiling that is nearer, "memory" or "compute", or "unknown"
//   ceiling_percent: max(flops / ceiling, bytes / ceiling) / p50, of cold records
//   check: error in units of the budget that it was checked against (null: a peer that only moves
//     bytes); elements: how many
#pragma once
#include <cmath>
#include <cstdint>
#include <string>

#include "kernels/core/device.h"
#include "kernels/core/types.h"

namespace orthofed::bench {

// Builds one object; what is not finite becomes null.
class Json {
 public:
  Json& text(const char* name, const std::string& value);
  Json& number(const char* name, double value);
  Json& null(const char* name);
  Json& object(const char* name, const Json& value);
  std::string str() const { return '{' + members_ + '}'; }

 private:
  Json& member(const char* name, const std::string& json);
  std::string members_;
};

struct Ceilings {
  double gflops = NAN, gbs = NAN;  // not measured
};
Ceilings ceilings_of(Device device, DType dtype);

Json host_record(const std::string& gpu);

// Appends a line to the file that --json named; does nothing where it named none.
void write_record(const Json& record);
void set_record_file(const std::string& path);  // throws UserError if it cannot be written

std::string utc_time();
int64_t last_level_cache();  // bytes

}  // namespace orthofed::bench
