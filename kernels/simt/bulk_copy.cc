// Bulk tensor copies: boxes of a matrix from global to shared memory, which an mbarrier counts.
#include <algorithm>

#include "kernels/simt/block.h"

namespace orthofed::simt {
namespace {

size_t row_bytes(const TensorMap& map) {
  return size_t(map.box[0]) * size_t(map.element_bytes);
}
size_t box_bytes(const TensorMap& map) {
  return row_bytes(map) * size_t(map.box[1]) * size_t(map.box[2]);
}

bool inside(const TensorMap& map, int dimension, int64_t i) {
  return 0 <= i && i < map.size[dimension];
}

// ThreadSanitizer sees what memcpy and memset write: as the deed of the thread that issued the
// copy, before whatever follows a wait for its mbarrier.
void finish(const BulkCopy& copy) {
  __tsan_acquire(&block->threads[copy.thread].issued);
  const TensorMap& map = copy.map;
  const uint32_t to = shared_address(copy.to);
  const auto element_bytes = size_t(map.element_bytes);
  std::byte* const shared = static_cast<std::byte*>(block->shared);
  uint32_t at = 0;  // in the box as it would lie without a swizzle
  for (int z = 0; z < map.box[2]; ++z) {
    for (int y = 0; y < map.box[1]; ++y) {
      const int64_t row = copy.at[1] + y, plane = copy.at[2] + z;
      const bool row_inside = inside(map, 1, row) && inside(map, 2, plane);
      for (int x = 0; x < map.box[0]; ++x, at += uint32_t(element_bytes)) {
        const int64_t col = copy.at[0] + x;
        const uint32_t address = swizzled(to + at, map.swizzle);
        std::byte* const view = in_async_view(address, element_bytes, "a bulk copy");
        if (row_inside && inside(map, 0, col))
          std::memcpy(
              view, map.data + plane * map.pitch[2] + row * map.pitch[1] + col * map.element_bytes,
              element_bytes);
        else
          std::memset(view, 0, element_bytes);
        std::memcpy(shared + (address - kSharedWindow), view, element_bytes);
      }
    }
  }
  arrive_bytes(copy.mbarrier, box_bytes(map));
}

}  // namespace

void bulk_copy(void* shared, const TensorMap& map, const int (&at)[3], uint64_t* mbarrier) {
  require_hopper("a bulk copy");
  if (shared_address(shared) % (map.swizzle == Swizzle::none ? 128 : 1024) != 0)
    fault("a bulk copy to an address that is not a multiple of 128 (1,024 with a swizzle)");
  check_ready(mbarrier, "a bulk copy");
  const BulkCopy copy{shared, map, {at[0], at[1], at[2]}, mbarrier, block->current};
  __tsan_release(&self().issued);
  [[maybe_unused]] const AsHardware hardware;
  if (late())
    block->bulk_copies.push_back(copy);
  else
    finish(copy);
}

bool finish_one_copy() {
  auto& copies = block->bulk_copies;
  if (copies.empty()) return false;
  if (block->random) std::swap(copies.front(), copies[block->rng() % copies.size()]);
  const BulkCopy copy = copies.front();
  copies.pop_front();
  finish(copy);
  return true;
}

}  // namespace orthofed::simt
