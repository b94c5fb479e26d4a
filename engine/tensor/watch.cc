#include "engine/tensor/watch.h"

#include <fmt/core.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "engine/tensor/allocator.h"
#include "engine/tensor/device.h"

namespace orthofed {
namespace {

thread_local std::string layer;
std::atomic<bool> shadow_wish = false, finite_check_wish = false;

bool environment_says(const char* variable, const char* value) {
  const char* wish = std::getenv(variable);
  return wish != nullptr && std::strcmp(wish, value) == 0;
}

// An allocator's block that a call was shown, as bytes in host memory.
struct Block {
  const std::byte* device = nullptr;
  std::vector<std::byte> before;
  DType dtype = DType::f32;
  bool output = false;
};

double element(const std::byte* from, DType dtype) {
  const auto as = [from]<class T>(T value) {
    std::memcpy(&value, from, sizeof value);
    return value;
  };
  switch (dtype) {
    case DType::f64:
      return as(double{});
    case DType::f32:
      return double(as(float{}));
    case DType::bf16:
      return double(float(as(bf16{})));
    case DType::f16:
      return double(float(as(f16{})));
    case DType::i32:
      return double(as(int32_t{}));
    case DType::u8:
      return double(as(uint8_t{}));
  }
  return NAN;
}

class Blocks : public Watch {
 public:
  explicit Blocks(Device device) : device_(device) {}

  void begin(const char* kernel) override {
    kernel_ = kernel;
    numbers_.clear();
    blocks_.clear();
    lists_.clear();
    last_output_ = nullptr;
    complete_ = true;
  }
  void* pointer(const void* p, DType dtype, bool output) override {
    const auto* address = static_cast<const std::byte*>(p);
    Block* block = known(address);
    if (block == nullptr) {
      const BlockOfMemory found = block_of(p, device_);
      if (found.begin == nullptr) {
        complete_ = false;
        return nullptr;
      }
      blocks_.push_back({static_cast<const std::byte*>(found.begin),
                         fetch(found.begin, found.bytes), dtype, false});
      block = &blocks_.back();
    }
    if (output) {
      block->output = true;
      block->dtype = dtype;
    }
    last_output_ = output ? block : nullptr;
    return block->before.data() + (address - block->device);
  }
  void type(DType dtype) override {
    if (last_output_ != nullptr) last_output_->dtype = dtype;
  }
  std::span<std::byte> list(const void* p) override {
    const BlockOfMemory found = block_of(p, device_);
    if (found.begin == nullptr) {
      complete_ = false;
      return {};
    }
    const auto before =
        static_cast<const std::byte*>(p) - static_cast<const std::byte*>(found.begin);
    lists_.push_back(fetch(p, found.bytes - size_t(before)));
    return lists_.back();
  }
  void number(int64_t value) override { numbers_ += fmt::format(" {}", value); }
  void opaque() override { complete_ = false; }
  void run(const Cost&) override {}

 protected:
  std::vector<std::byte> fetch(const void* from, size_t bytes) const {
    std::vector<std::byte> copy(bytes);
    copy_rows(copy.data(), Device::cpu, bytes, from, device_, bytes, bytes, 1);
    return copy;
  }
  Block* known(const std::byte* address) {
    for (Block& b : blocks_)
      if (b.device <= address && address < b.device + b.before.size()) return &b;
    return nullptr;
  }
  [[noreturn]] void stop(const std::string& what) const {
    throw Error(fmt::format("{} on {}{}{}, called with{}: {}", kernel_, name_of(device_),
                            layer.empty() ? "" : " in ", layer, numbers_, what));
  }

  Device device_;
  const char* kernel_ = "";
  std::string numbers_;
  std::vector<Block> blocks_;
  Block* last_output_ = nullptr;  // of the pointer shown last, if it is one
  std::vector<std::vector<std::byte>> lists_;
  bool complete_ = true;
};

class Shadow : public Blocks {
 public:
  using Blocks::Blocks;
  bool ran() override {
    if (!complete_) return false;
    got_.clear();
    for (const Block& b : blocks_)
      got_.push_back(b.output ? fetch(b.device, b.before.size()) : std::vector<std::byte>());
    return true;
  }
  // The CPU has worked on the blocks' copies.
  void end() override {
    if (!complete_) return;
    for (size_t i = 0; i < blocks_.size(); ++i) {
      const Block& want = blocks_[i];
      if (!want.output || got_[i] == want.before) continue;
      const size_t size = size_of(want.dtype), count = want.before.size() / size;
      double largest = 0;
      for (size_t j = 0; j < count; ++j) {
        const double w = std::abs(element(&want.before[j * size], want.dtype));
        if (std::isfinite(w)) largest = std::max(largest, w);
      }
      // Of the largest magnitude in the block: an error that matters is far larger, the order of a
      // sum over thousands of terms far smaller.
      const double budget = largest * (want.dtype == DType::bf16 ? 0x1p-6 : 1e-4);
      for (size_t j = 0; j < count; ++j) {
        if (std::memcmp(&got_[i][j * size], &want.before[j * size], size) == 0) continue;
        const double g = element(&got_[i][j * size], want.dtype);
        const double w = element(&want.before[j * size], want.dtype);
        if (std::abs(g - w) <= budget || (std::isnan(g) && std::isnan(w)) || g == w) continue;
        stop(fmt::format("element {} of an output is {}, the CPU computes {} (budget {:.1e})", j, g,
                         w, budget));
      }
    }
  }

 private:
  std::vector<std::vector<std::byte>> got_;  // a block: what the device left
};

class FiniteCheck : public Blocks {
 public:
  using Blocks::Blocks;
  bool ran() override { return false; }
  void end() override {
    for (const Block& b : blocks_) {
      if (!b.output || b.dtype == DType::i32 || b.dtype == DType::u8) continue;
      const std::vector<std::byte> now = fetch(b.device, b.before.size());
      const size_t size = size_of(b.dtype);
      for (size_t j = 0; j + size <= now.size(); j += size)
        if (std::memcmp(&now[j], &b.before[j], size) != 0 &&
            !std::isfinite(element(&now[j], b.dtype)))
          stop(fmt::format("element {} of an output became {}", j / size,
                           element(&now[j], b.dtype)));
    }
  }
};

}  // namespace

void ask_for_shadow() {
  shadow_wish = true;
}

void ask_for_finite_check() {
  finite_check_wish = true;
}

bool shadow_asked() {
  return shadow_wish || environment_says("OF_SHADOW", "cpu");
}

bool finite_check_asked() {
  return finite_check_wish || environment_says("OF_CHECK_FINITE", "1");
}

std::unique_ptr<Watch> make_shadow(const Queue& queue) {
  return std::make_unique<Shadow>(queue.device);
}

std::unique_ptr<Watch> make_finite_check(const Queue& queue) {
  return std::make_unique<FiniteCheck>(queue.device);
}

void set_watched_layer(const std::string& name) {
  layer = name;
}

const std::string& watched_layer() {
  return layer;
}

}  // namespace orthofed
