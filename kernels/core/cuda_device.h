// The few CUDA runtime calls that code outside .cu files makes, declared without CUDA's headers,
// because a build without nvcc has none. They are defined only in a build with device cuda
// (OF_HAVE_CUDA).
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/device.h"

namespace orthofed::cuda {

int device_count() noexcept;  // also 0 without a driver

// Both are the current device's. A capability of 90 is compute capability 9.0.
int capability();
int multiprocessors();
int64_t level2_cache();  // bytes

void* allocate(size_t bytes);          // device memory, aligned to 256; null where none is left
size_t free_memory();                  // bytes that the current device has left, for everybody
void* allocate_managed(size_t bytes);  // memory at the same address on host and device
void release(void* memory) noexcept;   // what either of the two allocated; null is fine

void* allocate_pinned(size_t bytes);  // host memory that a GPU reads by itself
void release_pinned(void* memory) noexcept;

void synchronize(const Stream& stream);  // throws Error if what was queued has failed

// Returns the seconds that what `work` queues takes, by the GPU's clock. Waits for its end.
double seconds_of(const Stream& stream, const std::function<void()>& work);

// Marks points in a stream's time by the GPU's clock, without waiting for the GPU.
class Timeline {
 public:
  explicit Timeline(const Stream& stream);
  ~Timeline();
  Timeline(const Timeline&) = delete;
  Timeline& operator=(const Timeline&) = delete;

  int64_t mark();  // marks the end of what is queued so far; returns the mark's number, from 0
  // Returns the seconds from the first mark to each. Waits for the last one; the next marks are
  // numbered from 0 again.
  std::vector<double> take();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// A graph keeps what `work` queues on its stream and runs it again in one call. `work` neither
// waits nor allocates, and all of its kernels have run before, so that the driver has nothing to
// load.
// The stream is not the legacy one, which cannot be captured, and does not wait for it, which would
// make other threads' use of the legacy stream an error (CUDA C++ Programming Guide, "Creating a
// Graph Using Stream Capture"); other threads may allocate meanwhile.
class Graph {
 public:
  explicit Graph(const std::function<void(void* stream)>& work);
  ~Graph();
  void launch(const Stream& stream) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// They begin and end a named range of the calling thread on the time line of NVIDIA's profilers
// (NVTX), which costs next to nothing where no profiler is attached. Built without the toolkit's
// nvtx3 headers they do nothing.
void begin_range(const char* name) noexcept;
void end_range() noexcept;

// Copies rows of `width` bytes that are `pitch` bytes apart; the addresses tell host from device.
// The copy is done, as far as the host can tell, when it returns. With wait = false it is queued
// only, which is for copies from device to device.
void copy_rows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
               size_t rows, const Stream& stream, bool wait = true);
void zero_rows(void* data, size_t pitch, size_t width, size_t rows, const Stream& stream);

// Copies from pinned host memory to a device on a stream of its own, beside the kernels of
// another.
class CopyStream {
 public:
  CopyStream();
  ~CopyStream();  // waits for the copies
  CopyStream(const CopyStream&) = delete;
  CopyStream& operator=(const CopyStream&) = delete;

  // Queues a copy behind what `stream` has been given so far, and returns.
  void copy(void* to, const void* from, size_t bytes, const Stream& stream);
  // What `stream` is given from here on waits for the copies.
  void join(const Stream& stream);
  void finish();  // waits for the copies

 private:
  struct Handles;
  std::unique_ptr<Handles> handles_;
};

// What `orthofed doctor` tells about the GPUs of this machine.
struct Gpu {
  std::string name;
  int capability = 0;           // 90: compute capability 9.0
  size_t memory = 0, free = 0;  // bytes; other programs' use is not free
};
std::vector<Gpu> gpus();   // empty without a driver or a device
std::string why_no_gpu();  // where gpus() is empty, in CUDA's words
// A version is 1000 major + 10 minor, as CUDA writes it.
int toolkit_version() noexcept;  // of the toolkit that this program was built with
int driver_version() noexcept;   // the newest that the driver knows; 0 without a driver

// A library that is opened when it is first needed and never linked, because it is larger than
// everything else together: libcublasLt.so.13, libcudnn.so.9. It is looked for in the file or
// folder that the environment variable names, where the loader looks, in the CUDA toolkit, and
// among what PyTorch brings in the Python environment that is active or that scripts/python.sh
// makes. It stays open; the handle is null where no such library is found.
struct Library {
  void* handle = nullptr;  // for dlsym
  std::string path;
};
Library open_library(const std::string& name, const char* variable);
// Throws Error where the library has no function of that name.
void* find_function(const Library& library, const char* name);
template <class F>
void find_function(const Library& library, const char* name, F& function) {
  function = reinterpret_cast<F>(find_function(library, name));
}

// Does the environment ask for such a library's kernels instead of ours, as OF_MATMUL=cublaslt
// does? Throws UserError where `choice` is neither "own" nor `peer`, and where it is `peer` but
// found() is false; the message says that `library` was not found and that `variable` may name its
// folder.
bool peer_asked(const char* choice, const std::string& peer, bool (*found)(),
                const std::string& library, const std::string& variable);

}  // namespace orthofed::cuda
