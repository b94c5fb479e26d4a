// Independent tasks, such as decoding and hashing, run on a few threads.
#pragma once
#include <cstdint>
#include <functional>

namespace orthofed {

using Progress = std::function<void(int64_t done, int64_t total)>;

// Runs task(i) for i in [0, n), in any order. If tasks throw, the rest is left out and the error of
// the lowest i that failed is thrown here. One thread at a time calls progress, after each task.
void run_workers(int64_t n, int64_t workers, const std::function<void(int64_t)>& task,
                 const Progress& progress = {});

}  // namespace orthofed
