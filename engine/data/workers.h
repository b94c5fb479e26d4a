// Independent tasks on a few threads: decoding, hashing.
#pragma once
#include <cstdint>
#include <functional>

namespace orthofed {

using Progress = std::function<void(int64_t done, int64_t total)>;

// task(i) for i in [0, n), in any order. If tasks throw, the rest is left out and the error of the
// lowest i that failed is thrown here. progress is called by one thread at a time, after each task.
void run_workers(int64_t n, int64_t workers, const std::function<void(int64_t)>& task,
                 const Progress& progress = {});

}  // namespace orthofed
