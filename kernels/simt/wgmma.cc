// Products of a warpgroup: 128 threads that start on a multiple of 128 meet in each wgmma. Operands
// are read from shared memory, and sums come back to registers, at some moment until the wait; in
// between the registers hold NaN.
#include <array>

#include "kernels/core/fp8.h"
#include "kernels/simt/block.h"

namespace orthofed::simt {
namespace {

constexpr unsigned kThreads = 128;
constexpr int kRows = 64, kDepth = 16;  // D [64, n], A [64, 16], B [16, n]; of e4m3, 32

// The row and column of register `index` of a thread's part of D (PTX ISA, "Register Fragments and
// Shared Memory Matrix Layouts" of wgmma.m64nNk16). Registers of A are the same with columns of
// pairs: register r holds indices 2r and 2r + 1.
struct Place {
  int row, col;
};
Place place(unsigned thread, int index) {
  const int warp = int(thread) / 32, lane = int(thread) % 32;
  return {16 * warp + lane / 4 + index / 2 % 2 * 8, index / 4 * 8 + lane % 4 * 2 + index % 2};
}

// D of a chain of products whose registers are not the threads' own at the moment.
struct Sums {
  std::array<float*, kThreads> registers;
  int n;
  std::vector<float> values;  // [64, n]
  int group;                  // of the chain's last product
  unsigned left = kThreads;   // threads that have not got theirs back
  std::array<bool, kThreads> taken{};
};

struct Product {
  Wgmma of;  // thread 0's, for what all have in common
  int group;
  std::shared_ptr<Sums> sums;
  std::vector<float> a;  // [64, 16], if it comes from registers
};

float bf16_at(const std::byte* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

// A matrix descriptor (PTX ISA, "Matrix Descriptor Format"); the layout it describes is as CUTLASS
// writes it down above make_gmma_desc, in chunks of 16 bytes and atoms of 8 rows of 1 << swizzle
// chunks. `side` is the index along m or n, `depth` that along k.
struct Descriptor {
  uint32_t start, leading, stride;
  Swizzle swizzle;
  bool transposed;  // neighbours in memory lie along m or n

  Descriptor(uint64_t bits, bool transposed_) : transposed(transposed_) {
    const auto field = [&](int first) { return uint32_t(bits >> first & 0x3fff) << 4; };
    start = field(0);
    leading = field(16);
    stride = field(32);
    constexpr Swizzle by_code[] = {Swizzle::none, Swizzle::bytes_128, Swizzle::bytes_64,
                                   Swizzle::bytes_32};
    swizzle = by_code[bits >> 62];
    if ((bits >> 49 & 7) != 0) fault("wgmma: the emulator knows no base offset but 0");
    if (swizzled(start, swizzle) != start)
      fault("wgmma: a descriptor that starts amid the rows of a swizzled atom");
  }

  uint32_t address(int side, int depth) const {
    const int line = transposed ? side : depth;  // along memory
    const int row = transposed ? depth : side;   // across
    const int chunks = 1 << int(swizzle), chunk = line / 8;
    const auto offset = [&](int count, uint32_t bytes) { return uint32_t(count) * bytes; };
    uint32_t a = start + offset(line % 8, 2) + offset(row % 8 * chunks, 16);
    if (swizzle == Swizzle::none)
      a += transposed ? offset(chunk, stride) + offset(row / 8, leading)
                      : offset(chunk, leading) + offset(row / 8, stride);
    else
      a += offset(chunk % chunks, 16) + offset(chunk / chunks, leading) + offset(row / 8, stride);
    return swizzled(a, swizzle);
  }

  float operator()(int side, int depth) const {
    return bf16_at(in_async_view(address(side, depth), 2, "wgmma: a descriptor"));
  }
  // In memory a pair of e4m3 takes a bf16's place.
  float e4m3_at(int side, int depth) const {
    e4m3 x;
    std::memcpy(&x, in_async_view(address(side, depth / 2), 2, "wgmma: a descriptor") + depth % 2,
                sizeof x);
    return x;
  }
};

}  // namespace

struct Warpgroup {
  unsigned arrived = 0;
  unsigned latest = 0;  // of those that have arrived
  Site site;
  std::array<Wgmma, kThreads> parts{};
  std::deque<Product> products;             // issued and not yet done
  std::vector<std::shared_ptr<Sums>> sums;  // in flight
};

namespace {

unsigned rank_in_group() {
  return block->current % kThreads;
}

Warpgroup& warpgroup() {
  [[maybe_unused]] const AsHardware hardware;
  const unsigned index = block->current / kThreads;
  if ((index + 1) * kThreads > block->threads.size())
    fault("wgmma by a warpgroup of fewer than 128 threads");
  if (block->warpgroups.size() <= index) block->warpgroups.resize(index + 1);
  auto& group = block->warpgroups[index];
  if (!group) group = std::make_shared<Warpgroup>();
  return *group;
}

bool agree(const Wgmma& x, const Wgmma& y) {
  return (x.registers == nullptr) == (y.registers == nullptr) && x.a == y.a && x.b == y.b &&
         x.n == y.n && x.transpose_a == y.transpose_a && x.transpose_b == y.transpose_b &&
         x.e4m3 == y.e4m3 && x.add == y.add;
}

void compute(const Product& p) {
  const int n = p.of.n, depth = p.of.e4m3 ? 2 * kDepth : kDepth;
  const auto element = [&](const Descriptor& from, int side, int k) {
    return p.of.e4m3 ? from.e4m3_at(side, k) : from(side, k);
  };
  std::vector<float> a = p.a, b(size_t(depth * n));  // [64, depth], [depth, n]
  if (a.empty()) {
    const Descriptor from(p.of.a, p.of.transpose_a);
    for (int i = 0; i < kRows; ++i)
      for (int k = 0; k < depth; ++k) a.push_back(element(from, i, k));
  }
  const Descriptor from(p.of.b, p.of.transpose_b);
  for (int k = 0; k < depth; ++k)
    for (int j = 0; j < n; ++j) b[size_t(k * n + j)] = element(from, j, k);
  if (!p.of.add) std::fill(p.sums->values.begin(), p.sums->values.end(), 0.0f);
  for (int i = 0; i < kRows; ++i)
    for (int k = 0; k < depth; ++k) {
      const float factor = a[size_t(i * depth + k)];
      const float* row = &b[size_t(k * n)];
      float* sum = &p.sums->values[size_t(i * n)];
      for (int j = 0; j < n; ++j) sum[j] += factor * row[j];
    }
}

// The sums whose registers these are: those of an earlier product, or the threads' own, which from
// now on are NaN.
std::shared_ptr<Sums> take_registers(Warpgroup& group, unsigned first, int product_group) {
  for (const auto& sums : group.sums) {
    if (sums->registers[0] != group.parts[0].d) continue;
    if (sums->left != kThreads) fault("wgmma on sums that part of the warpgroup has waited for");
    sums->group = product_group;
    return sums;
  }
  auto sums = std::make_shared<Sums>();
  sums->n = group.parts[0].n;
  sums->group = product_group;
  sums->values.resize(size_t(kRows * sums->n));
  for (unsigned thread = 0; thread < kThreads; ++thread) {
    if (!block->threads[first + thread].registers_fenced)
      fail("wgmma on registers that are the threads' own: wgmma_fence is missing");
    float* const d = sums->registers[thread] = group.parts[thread].d;
    for (int index = 0; index < sums->n / 2; ++index) {
      const Place at = place(thread, index);
      sums->values[size_t(at.row * sums->n + at.col)] = d[index];
      d[index] = std::bit_cast<float>(0x7fffffffu);
    }
  }
  group.sums.push_back(sums);
  return sums;
}

void issue(Warpgroup& group, unsigned first) {
  [[maybe_unused]] const AsHardware hardware;
  Product product{group.parts[0], block->threads[first].product_group, nullptr, {}};
  for (unsigned thread = 0; thread < kThreads; ++thread)
    if (block->threads[first + thread].product_group != product.group)
      fail("wgmma: the warpgroup's threads have committed different numbers of groups");
  product.sums = take_registers(group, first, product.group);
  if (product.of.registers != nullptr) {
    product.a.resize(kRows * kDepth);
    for (unsigned thread = 0; thread < kThreads; ++thread)
      for (int index = 0; index < 8; ++index) {
        const uint32_t pair = group.parts[thread].registers[index / 2];
        const Place at = place(thread, index);
        product.a[size_t(at.row * kDepth + at.col)] =
            std::bit_cast<float>(index % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
      }
  }
  if (group.products.empty() && !late())
    compute(product);
  else
    group.products.push_back(std::move(product));
}

}  // namespace

void wgmma(const Wgmma& product, const Site& site) {
  require_hopper("wgmma");
  Thread& t = self();
  t.waits_for = "wgmma";
  t.site = site;
  const unsigned mine = rank_in_group(), first = block->current - mine;
  Warpgroup& group = warpgroup();
  if (group.arrived > 0) {
    t.state = State::at_warpgroup;
    if (!same(group.site, site)) fail("a warpgroup's threads meet in different wgmma");
    if (!agree(group.parts[group.latest], product))
      fail("a warpgroup's threads give different operands to a wgmma");
  }
  group.site = site;
  group.parts[mine] = product;
  group.latest = mine;
  if (++group.arrived < kThreads) return wait(State::at_warpgroup);
  group.arrived = 0;
  issue(group, first);
  for (unsigned thread = 0; thread < kThreads; ++thread)
    block->threads[first + thread].state = State::ready;
}

void wgmma_fence() {
  require_hopper("wgmma_fence");
  self().registers_fenced = true;
}

void wgmma_commit() {
  ++self().product_group;
}

void wgmma_wait(int pending) {
  Thread& t = self();
  Warpgroup& group = warpgroup();
  const unsigned mine = rank_in_group();
  [[maybe_unused]] const AsHardware hardware;
  const int end = t.product_group - pending;  // groups before this one are waited for
  while (!group.products.empty() && group.products.front().group < end) {
    compute(group.products.front());
    group.products.pop_front();
  }
  for (const auto& sums : group.sums) {
    if (sums->group >= end || sums->taken[mine]) continue;
    for (int index = 0; index < sums->n / 2; ++index) {
      const Place at = place(mine, index);
      sums->registers[mine][index] = sums->values[size_t(at.row * sums->n + at.col)];
    }
    sums->taken[mine] = true;
    --sums->left;
    t.registers_fenced = false;
  }
  std::erase_if(group.sums, [](const auto& sums) { return sums->left == 0; });
}

}  // namespace orthofed::simt
