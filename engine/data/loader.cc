#include "engine/data/loader.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>
#include <thread>

#include "engine/data/image_feed.h"
#include "kernels/core/check.h"

namespace orthofed {

struct Loader::State {
  std::shared_ptr<const ImageCache> cache;
  LoaderOptions options;
  std::vector<int64_t> indices;
  int64_t batches = 0;

  // Batch b lives in slot b % slots: one is with the consumer, the others are being filled or full.
  struct Slot {
    Batch batch;
    ImageFeed::Stage stage;  // for a device; labels and weights are the batch's
  };
  std::vector<Slot> slots;

  // The consumer's, for a device; null on the CPU, where a slot is what it gets.
  std::unique_ptr<ImageFeed> feed;
  Batch received;
  int64_t sent = -1;  // the batch whose stage was sent last

  std::mutex mutex;  // of what follows
  std::condition_variable work, ready;
  bool stop = false;
  int64_t epoch = 0;
  std::vector<int64_t> order;   // changed only while no worker is busy
  int64_t claimed = 0;          // batches given to workers
  int64_t served = 0;           // batches given to the consumer
  int64_t busy = 0;             // workers filling a batch
  std::vector<int64_t> filled;  // [slots] the batch a slot holds, or -1
  std::exception_ptr error;

  std::vector<std::jthread> threads;

  ~State() {
    {
      std::lock_guard lock(mutex);
      stop = true;
    }
    work.notify_all();
    threads.clear();  // joins, while the rest of the state is alive
  }
  void run();
  void fill(const Slot& slot, int64_t i, int64_t index) const;
  void fill(Slot& slot, int64_t b) const;
  void send(int64_t b);
};

namespace {

std::vector<int64_t> all_of(const ImageCache& cache) {
  std::vector<int64_t> indices(size_t(cache.count()));
  std::iota(indices.begin(), indices.end(), int64_t{0});
  return indices;
}

}  // namespace

Loader::Loader(std::shared_ptr<const ImageCache> cache, const LoaderOptions& options)
    : Loader(cache, options, all_of(*cache)) {}

Loader::Loader(std::shared_ptr<const ImageCache> cache, const LoaderOptions& options,
               std::vector<int64_t> indices)
    : state_(std::make_unique<State>()) {
  OF_CHECK(options.batch_size > 0 && options.workers > 0, "a loader has a batch and a worker");
  OF_CHECK(options.patch > 0 && cache->size() % options.patch == 0,
           "patches cover the image exactly");
  for (int64_t i : indices)
    OF_CHECK(i >= 0 && i < cache->count(), "an index lies outside the cache");
  State& s = *state_;
  s.cache = std::move(cache);
  s.options = options;
  s.indices = std::move(indices);
  const int64_t batch = options.batch_size, grid = s.cache->size() / options.patch;
  s.batches = (int64_t(s.indices.size()) + batch - 1) / batch;
  if (options.device != Device::cpu) {
    const OnDevice scope(options.device);
    const int64_t size = s.cache->size();
    s.feed = std::make_unique<ImageFeed>(ImageShape{batch, size, size, size, options.patch},
                                         options.mean.data(), options.std.data(), options.dtype);
    s.received = {s.feed->patches(), s.feed->labels(), s.feed->weights(), {}, 0};
  }
  const OnDevice host(Device::cpu);
  for (int64_t i = 0; i < options.workers + 2; ++i) {
    State::Slot slot;
    Batch& b = slot.batch;
    if (s.feed) {
      slot.stage = s.feed->stage();
      b.labels = slot.stage.labels;
      b.weights = slot.stage.weights;
    } else {
      b.patches =
          Tensor::zeros({batch * grid * grid, 3 * options.patch * options.patch}, options.dtype);
      b.labels = Tensor::zeros({batch}, DType::i32);
      b.weights = Tensor::zeros({batch}, accum(options.dtype));
    }
    b.indices.resize(size_t(batch));
    s.slots.push_back(std::move(slot));
  }
  s.filled.assign(s.slots.size(), -1);
  s.claimed = s.served = s.batches;  // nothing to do before start()
  for (int64_t i = 0; i < options.workers; ++i) s.threads.emplace_back([&s] { s.run(); });
}

Loader::~Loader() = default;

int64_t Loader::samples() const {
  return int64_t(state_->indices.size());
}
int64_t Loader::batches() const {
  return state_->batches;
}

std::vector<int64_t> Loader::order(int64_t epoch) const {
  const State& s = *state_;
  std::vector<int64_t> order = s.indices;
  if (!s.options.shuffle) return order;
  // Every sample draws a number and they queue by it; equal numbers by id.
  struct Ticket {
    uint64_t number;
    const std::string* id;
    int64_t index;
  };
  std::vector<Ticket> tickets;
  for (int64_t i : s.indices) {
    const std::string& id = s.cache->samples()[size_t(i)].id;
    const Philox rng = PhiloxKey(s.options.seed).with("order").with(uint64_t(epoch)).with(id);
    const auto r = rng(0);
    tickets.push_back({uint64_t{r[0]} << 32 | r[1], &id, i});
  }
  std::sort(tickets.begin(), tickets.end(), [](const Ticket& a, const Ticket& b) {
    if (a.number != b.number) return a.number < b.number;
    return *a.id != *b.id ? *a.id < *b.id : a.index < b.index;
  });
  for (size_t i = 0; i < tickets.size(); ++i) order[i] = tickets[i].index;
  return order;
}

void Loader::start(int64_t epoch) {
  State& s = *state_;
  std::vector<int64_t> next_order = order(epoch);
  if (s.feed) s.feed->finish();
  s.sent = -1;
  std::unique_lock lock(s.mutex);
  s.claimed = s.batches;  // no more of the old epoch
  s.ready.wait(lock, [&] { return s.busy == 0; });
  s.epoch = epoch;
  s.order = std::move(next_order);
  s.claimed = s.served = 0;
  std::fill(s.filled.begin(), s.filled.end(), -1);
  s.error = nullptr;
  lock.unlock();
  s.work.notify_all();
}

const Batch* Loader::next() {
  State& s = *state_;
  // What was sent, of a slot that is about to be the workers' again or of the one after it.
  if (s.feed) s.feed->finish();
  std::unique_lock lock(s.mutex);
  if (s.served == s.batches) return nullptr;
  const int64_t b = s.served++;  // frees the slot of batch b - 1
  s.work.notify_all();
  const auto full = [&s](int64_t k) { return s.filled[size_t(k) % s.slots.size()] == k; };
  s.ready.wait(lock, [&] { return full(b) || s.error; });
  if (s.error) std::rethrow_exception(s.error);
  const Batch& batch = s.slots[size_t(b) % s.slots.size()].batch;
  if (!s.feed) return &batch;

  const bool ahead = b + 1 < s.batches && full(b + 1);
  lock.unlock();
  if (s.sent != b) s.send(b);
  s.feed->receive(batch.valid);
  s.received.indices = batch.indices;
  s.received.valid = batch.valid;
  if (ahead) s.send(b + 1);  // beside the step that b is for
  return &s.received;
}

void Loader::State::send(int64_t b) {
  feed->send(slots[size_t(b) % slots.size()].stage);
  sent = b;
}

void Loader::State::run() {
  std::unique_lock lock(mutex);
  while (true) {
    // Batch b may be filled once b - slots is no longer with the consumer, that is, once
    // b - slots + 1 has been asked for.
    work.wait(lock, [&] {
      return stop || (claimed < batches && !error && claimed - int64_t(slots.size()) + 2 <= served);
    });
    if (stop) return;
    const int64_t b = claimed++;
    ++busy;
    lock.unlock();
    const auto slot = size_t(b) % slots.size();
    std::exception_ptr caught;
    try {
      fill(slots[slot], b);
    } catch (...) {
      caught = std::current_exception();
    }
    lock.lock();
    --busy;
    filled[slot] = b;
    if (caught && !error) error = caught;
    ready.notify_all();
  }
}

// Runs on a worker.
void Loader::State::fill(Slot& slot, int64_t b) const {
  Batch& batch = slot.batch;
  const int64_t first = b * options.batch_size;
  batch.valid = std::min(options.batch_size, int64_t(order.size()) - first);
  for (int64_t i = 0; i < options.batch_size; ++i) {
    const bool valid = i < batch.valid;
    const int64_t index = valid ? order[size_t(first + i)] : -1;
    batch.indices[size_t(i)] = index;
    batch.labels.data<int32_t>()[i] = valid ? cache->samples()[size_t(index)].label : 0;
    dispatch_accum(batch.weights.dtype(),
                   [&]<class A>(Tag<A>) { batch.weights.data<A>()[i] = valid ? A(1) : A(0); });
    if (valid || !feed) fill(slot, i, index);
  }
}

// Image `index`, or none (-1), becomes the i-th of the slot. The kernel is called image by image,
// which keeps it on this thread.
void Loader::State::fill(const Slot& slot, int64_t i, int64_t index) const {
  ImageAugment augment;
  if (options.augment && index >= 0) {
    const Philox rng = PhiloxKey(options.seed)
                           .with("augment")
                           .with(uint64_t(epoch))
                           .with(cache->samples()[size_t(index)].id);
    augment = draw_augment(*options.augment, rng);
  }
  const int64_t size = cache->size(), p = options.patch, patches = (size / p) * (size / p);
  if (feed) {
    std::memcpy(slot.stage.pixels.row<uint8_t>(i), cache->image(index), size_t(size * size * 3));
    slot.stage.augment[i] = augment;
    return;
  }
  const Tensor& all = slot.batch.patches;
  dispatch(options.dtype, [&]<class T>(Tag<T>) {
    T* to = all.row<T>(i * patches);
    if (index < 0) {
      std::fill_n(to, patches * all.pitch(), T(0));
      return;
    }
    const uint8_t* image = cache->image(index);
    cpu::image_to_patches(ImageToPatches<T>{.images = &image,
                                            .augment = &augment,
                                            .mean = options.mean.data(),
                                            .std = options.std.data(),
                                            .patches = to,
                                            .ld = all.pitch(),
                                            .shape = ImageShape{1, size, size, size, p}});
  });
}

}  // namespace orthofed
