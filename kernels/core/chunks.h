// Some kernels take many tensors in one call. Each tensor is cut into chunks of kChunk elements,
// and the chunks of all tensors are numbered in one sequence, so that work is divided evenly
// however much the sizes differ: on a GPU a chunk is the work of one block. The caller numbers the
// chunks on the host, before the list goes to a device.
//
// An Item has `int64_t size` and `int64_t first_chunk`.
#pragma once
#include <cstdint>

#include "kernels/core/host_device.h"

namespace orthofed {

inline constexpr int64_t kChunk = 4096;

// Sets first_chunk of items [count]; returns the number of chunks of all of them.
template <class Item>
int64_t number_chunks(Item* items, int64_t count) {
  int64_t chunks = 0;
  for (int64_t k = 0; k < count; ++k) {
    items[k].first_chunk = chunks;
    chunks += (items[k].size + kChunk - 1) / kChunk;
  }
  return chunks;
}

// Elements [begin, end) of items[item]; begin is a multiple of kChunk.
struct Chunk {
  int64_t item, begin, end;
};

// Chunk number `chunk` belongs to the last item that starts at or before it: an empty item shares
// its number with the next one.
template <class Item>
OF_HOST_DEVICE Chunk find_chunk(const Item* items, int64_t count, int64_t chunk) {
  int64_t item = 0, after = count;  // items[item].first_chunk <= chunk < items[after].first_chunk
  while (after - item > 1) {
    const int64_t middle = item + (after - item) / 2;
    if (items[middle].first_chunk <= chunk)
      item = middle;
    else
      after = middle;
  }
  const int64_t begin = (chunk - items[item].first_chunk) * kChunk, end = begin + kChunk;
  return {item, begin, end < items[item].size ? end : items[item].size};
}

}  // namespace orthofed
