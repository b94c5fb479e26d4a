// The asynchronous proxy's view of shared memory, and what is small.
#include "kernels/simt/block.h"

namespace orthofed::simt {

void require_hopper(const char* name) {
  if (block->capability < 90)
    fault(std::string(name) + " is of compute capability 9.0, and the emulated device has 8.0");
}

uint32_t shared_address(const void* pointer) {
  const auto* p = static_cast<const std::byte*>(pointer);
  const auto* begin = static_cast<const std::byte*>(block->shared);
  if (p < begin || p >= begin + block->shared_bytes)
    fault("an address for descriptors and bulk copies that is not in dynamic shared memory");
  return kSharedWindow + uint32_t(p - begin);
}

std::byte* in_async_view(uint32_t address, size_t bytes, const char* name) {
  if (address < kSharedWindow || address - kSharedWindow + bytes > block->shared_bytes)
    fail(std::string(name) + " leaves the block's dynamic shared memory");
  return block->async_view.data() + (address - kSharedWindow);
}

void fence_async_proxy() {
  require_hopper("fence.proxy.async");
  // As volatile, so that it is no memcpy, which ThreadSanitizer would watch.
  const auto* shared = static_cast<const volatile std::byte*>(block->shared);
  for (size_t i = 0; i < block->shared_bytes; ++i) block->async_view[i] = shared[i];
}

namespace {

// PTX leaves open which lane it is.
void complete_election(Lane* lanes, uint32_t) {
  int elected = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (block->late && lanes[lane].out != nullptr) elected = lane;
  for (int lane = 0; lane < 32; ++lane)
    if (lanes[lane].out != nullptr) *static_cast<bool*>(lanes[lane].out) = lane == elected;
}

}  // namespace

bool elect_one(const Site& site) {
  require_hopper("elect_one");
  bool elected = false;
  rendezvous("elect_one", 0xffffffffu, &complete_election, {nullptr, &elected, 0}, site);
  return elected;
}

void change_registers() {
  require_hopper("setmaxnreg");
}

}  // namespace orthofed::simt
