#include "kernels/core/cuda.h"

#include <dlfcn.h>
#include <glob.h>
#include <link.h>
#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#endif

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "kernels/core/cuda_device.h"

namespace orthofed::cuda {

void fail(cudaError_t error, const char* call, const char* file, int line) {
  throw Error(std::string(file) + ":" + std::to_string(line) + ": " + call + ": " +
              cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")");
}

EventHandle make_event() {
  cudaEvent_t event = nullptr;
  OF_CUDA_CHECK(cudaEventCreate(&event));
  return EventHandle(event);
}

int device_count() noexcept {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  (void)cudaGetLastError();  // no driver, or no device: both mean that there is no GPU
  return 0;
}

namespace {
int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  OF_CUDA_CHECK(cudaGetDevice(&device));
  OF_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}
}  // namespace

int capability() {
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
         attribute(cudaDevAttrComputeCapabilityMinor);
}

int multiprocessors() {
  return attribute(cudaDevAttrMultiProcessorCount);
}

int64_t level2_cache() {
  return attribute(cudaDevAttrL2CacheSize);
}

void* allocate(size_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes == 0 ? 1 : bytes);
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();  // not sticky; the next check must not find it
    return nullptr;
  }
  OF_CUDA_CHECK(error);
  return memory;
}

size_t free_memory() {
  size_t free = 0, total = 0;
  OF_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return free;
}

void* allocate_managed(size_t bytes) {
  void* memory = nullptr;
  OF_CUDA_CHECK(cudaMallocManaged(&memory, bytes == 0 ? 1 : bytes));
  return memory;
}

void release(void* memory) noexcept {
  (void)cudaFree(memory);
}

void* allocate_pinned(size_t bytes) {
  void* memory = nullptr;
  OF_CUDA_CHECK(cudaMallocHost(&memory, bytes == 0 ? 1 : bytes));
  return memory;
}

void release_pinned(void* memory) noexcept {
  (void)cudaFreeHost(memory);
}

struct CopyStream::Handles {
  Owned<cudaStream_t, cudaStreamDestroy> stream;
  EventHandle before, done;
};

// Not blocking: the default stream would otherwise wait for the copies, and they for it.
CopyStream::CopyStream() : handles_(std::make_unique<Handles>()) {
  cudaStream_t stream = nullptr;
  OF_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  handles_->stream.reset(stream);
  for (EventHandle* event : {&handles_->before, &handles_->done}) {
    cudaEvent_t made = nullptr;
    OF_CUDA_CHECK(cudaEventCreateWithFlags(&made, cudaEventDisableTiming));
    event->reset(made);
  }
}

CopyStream::~CopyStream() {
  (void)cudaStreamSynchronize(handles_->stream.get());
}

void CopyStream::copy(void* to, const void* from, size_t bytes, const Stream& stream) {
  const Handles& h = *handles_;
  OF_CUDA_CHECK(cudaEventRecord(h.before.get(), static_cast<cudaStream_t>(stream.handle)));
  OF_CUDA_CHECK(cudaStreamWaitEvent(h.stream.get(), h.before.get(), 0));
  OF_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, h.stream.get()));
  OF_CUDA_CHECK(cudaEventRecord(h.done.get(), h.stream.get()));
}

void CopyStream::join(const Stream& stream) {
  OF_CUDA_CHECK(
      cudaStreamWaitEvent(static_cast<cudaStream_t>(stream.handle), handles_->done.get(), 0));
}

void CopyStream::finish() {
  OF_CUDA_CHECK(cudaStreamSynchronize(handles_->stream.get()));
}

void copy_rows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
               size_t rows, const Stream& stream, bool wait) {
  if (width == 0 || rows == 0) return;
  OF_CUDA_CHECK(cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, rows, cudaMemcpyDefault,
                                  static_cast<cudaStream_t>(stream.handle)));
  if (wait) synchronize(stream);
}

void zero_rows(void* data, size_t pitch, size_t width, size_t rows, const Stream& stream) {
  if (width == 0 || rows == 0) return;
  OF_CUDA_CHECK(
      cudaMemset2DAsync(data, pitch, 0, width, rows, static_cast<cudaStream_t>(stream.handle)));
}

void synchronize(const Stream& stream) {
  OF_CUDA_CHECK(cudaStreamSynchronize(static_cast<cudaStream_t>(stream.handle)));
}

struct Graph::State {
  Owned<cudaStream_t, cudaStreamDestroy> stream;
  Owned<cudaGraph_t, cudaGraphDestroy> graph;
  Owned<cudaGraphExec_t, cudaGraphExecDestroy> executable;
};

Graph::Graph(const std::function<void(void* stream)>& work) : state_(std::make_unique<State>()) {
  cudaStream_t stream = nullptr;
  OF_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  state_->stream.reset(stream);
  OF_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  cudaGraph_t graph = nullptr;
  try {
    work(stream);
  } catch (...) {
    // The capture ends whatever happens; its graph is of no use.
    if (cudaStreamEndCapture(stream, &graph) == cudaSuccess) state_->graph.reset(graph);
    (void)cudaGetLastError();
    throw;
  }
  OF_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  state_->graph.reset(graph);
  cudaGraphExec_t executable = nullptr;
  OF_CUDA_CHECK(cudaGraphInstantiate(&executable, graph, 0));
  state_->executable.reset(executable);
}

Graph::~Graph() = default;

void Graph::launch(const Stream& stream) const {
  OF_CUDA_CHECK(
      cudaGraphLaunch(state_->executable.get(), static_cast<cudaStream_t>(stream.handle)));
}

double seconds_of(const Stream& stream, const std::function<void()>& work) {
  const auto queued_on = static_cast<cudaStream_t>(stream.handle);
  const EventHandle begin = make_event(), end = make_event();
  OF_CUDA_CHECK(cudaEventRecord(begin.get(), queued_on));
  work();
  OF_CUDA_CHECK(cudaEventRecord(end.get(), queued_on));
  OF_CUDA_CHECK(cudaEventSynchronize(end.get()));
  float milliseconds = 0;
  OF_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()));
  return 1e-3 * double(milliseconds);
}

struct Timeline::State {
  cudaStream_t stream = nullptr;
  std::vector<EventHandle> events;  // used again after take()
  size_t marks = 0;
};

Timeline::Timeline(const Stream& stream) : state_(std::make_unique<State>()) {
  state_->stream = static_cast<cudaStream_t>(stream.handle);
}
Timeline::~Timeline() = default;

int64_t Timeline::mark() {
  State& s = *state_;
  if (s.marks == s.events.size()) s.events.push_back(make_event());
  OF_CUDA_CHECK(cudaEventRecord(s.events[s.marks].get(), s.stream));
  return int64_t(s.marks++);
}

std::vector<double> Timeline::take() {
  State& s = *state_;
  std::vector<double> seconds;
  if (s.marks == 0) return seconds;
  OF_CUDA_CHECK(cudaEventSynchronize(s.events[s.marks - 1].get()));
  for (size_t i = 0; i < s.marks; ++i) {
    float milliseconds = 0;
    OF_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, s.events[0].get(), s.events[i].get()));
    seconds.push_back(1e-3 * double(milliseconds));
  }
  s.marks = 0;
  return seconds;
}

#if __has_include(<nvtx3/nvToolsExt.h>)
void begin_range(const char* name) noexcept {
  nvtxRangePushA(name);
}
void end_range() noexcept {
  nvtxRangePop();
}
#else
void begin_range(const char*) noexcept {}
void end_range() noexcept {}
#endif

std::vector<Gpu> gpus() {
  std::vector<Gpu> found;
  int before = 0;
  const int count = device_count();
  if (count > 0) OF_CUDA_CHECK(cudaGetDevice(&before));
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    OF_CUDA_CHECK(cudaGetDeviceProperties(&properties, i));
    Gpu gpu{properties.name, 10 * properties.major + properties.minor, properties.totalGlobalMem,
            0};
    OF_CUDA_CHECK(cudaSetDevice(i));
    size_t total = 0;
    // A GPU that another program has to itself is one more thing to tell, not an error.
    if (cudaMemGetInfo(&gpu.free, &total) != cudaSuccess) (void)cudaGetLastError();
    found.push_back(gpu);
  }
  if (count > 0) OF_CUDA_CHECK(cudaSetDevice(before));
  return found;
}

std::string why_no_gpu() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  (void)cudaGetLastError();
  return cudaGetErrorString(error);
}

int toolkit_version() noexcept {
  return CUDART_VERSION;
}

int driver_version() noexcept {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

namespace {

// Where a library may lie, in the order of preference.
std::vector<std::string> places_of(const std::string& name, const char* variable) {
  const auto environment = [](const char* key) {
    const char* value = std::getenv(key);
    return std::string(value != nullptr ? value : "");
  };
  std::vector<std::string> places;
  if (const std::string path = environment(variable); !path.empty())
    places.insert(places.end(), {path, path + '/' + name});
  places.push_back(name);
  for (const std::string& toolkit : {environment("CUDA_HOME"), std::string("/usr/local/cuda")})
    if (!toolkit.empty()) places.push_back(toolkit + "/lib64/" + name);
  for (const std::string& python : {environment("VIRTUAL_ENV"), environment("OF_VENV"),
                                    environment("HOME") + "/.cache/orthofed/venv"}) {
    if (python.empty()) continue;
    glob_t matches{};
    if (glob((python + "/lib/python3*/site-packages/nvidia/*/lib/" + name).c_str(), 0, nullptr,
             &matches) == 0)
      places.insert(places.end(), matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
    globfree(&matches);
  }
  return places;
}

}  // namespace

Library open_library(const std::string& name, const char* variable) {
  for (const std::string& place : places_of(name, variable)) {
    void* handle = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) continue;
    const link_map* map = nullptr;
    const bool known = dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0;
    return {handle, known ? map->l_name : place};
  }
  return {};
}

void* find_function(const Library& library, const char* name) {
  void* const function = dlsym(library.handle, name);
  if (function == nullptr) throw Error(library.path + ": there is no " + name + " in it");
  return function;
}

bool peer_asked(const char* choice, const std::string& peer, bool (*found)(),
                const std::string& library, const std::string& variable) {
  const char* wish = std::getenv(choice);
  const std::string value = wish != nullptr ? wish : "";
  if (value.empty() || value == "own") return false;
  if (value != peer)
    throw UserError(std::string(choice) + ": '" + value + "' is not one of own, " + peer);
  if (!found())
    throw UserError(std::string(choice) + '=' + peer + ": " + library + " is not to be found; " +
                    variable + " can name its folder");
  return true;
}

}  // namespace orthofed::cuda
