#include "engine/data/workers.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace orthofed {

void run_workers(int64_t n, int64_t workers, const std::function<void(int64_t)>& task,
                 const Progress& progress) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;  // of what follows
  int64_t done = 0, failed_at = n;
  std::exception_ptr error;

  const auto work = [&] {
    for (int64_t i; !failed && (i = next++) < n;) {
      std::exception_ptr caught;
      try {
        task(i);
      } catch (...) {
        caught = std::current_exception();
      }
      std::lock_guard lock(mutex);
      try {
        if (caught) std::rethrow_exception(caught);
        if (progress) progress(++done, n);
      } catch (...) {
        failed = true;
        if (i < failed_at) {
          failed_at = i;
          error = std::current_exception();
        }
      }
    }
  };
  {
    std::vector<std::jthread> threads;  // joined at the end of the block
    for (int64_t t = 1; t < std::min(workers, n); ++t) threads.emplace_back(work);
    work();
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace orthofed
