// SPDX-License-Identifier: Apache-2.0
//
// mbarriers, tiles by the copy engine, and wgmma.
#include <algorithm>
#include <cstring>

#include "cuda_emulation/engine.h"

namespace int8q::emulation {
namespace {

constexpr int64_t kRow = 128, kChunk = 16, kPattern = 8 * kRow;  // bytes: of a row, and after which the swizzle repeats
constexpr int kRowsOfA = 64, kRowsOfB = 256, kDepth = 32, kSums = 128;
constexpr int32_t kPoison = 0x5a5a5a5a;

// All of a warpgroup meet; the last to come does what is to be done for all.
template <class Last>
void meet(const char* name, const Site& site, const Last& last) {
  Thread& t = self();
  Block& block = *t.block;
  Warpgroup& group = block.warpgroups[static_cast<size_t>(t.index / kWarpgroup)];
  t.site = site;
  if (group.arrived == 0) {
    group.name = name;
    group.site = site;
  } else if (std::strcmp(group.name, name) != 0 || group.site.line() != site.line()) {
    fault(
        FaultKind::kDivergence,
        std::string("is at ") + name + " while others of its warpgroup are at " + group.name + ", " + describe(group.site),
        site);
  }
  if (++group.arrived < kWarpgroup) {
    t.waiting = Waiting::kWarpgroupOperation;
    return yield();
  }
  group.arrived = 0;
  last();
  const size_t first = static_cast<size_t>(t.index / kWarpgroup * kWarpgroup);
  for (size_t i = first; i < first + kWarpgroup; ++i) block.threads[i].waiting = Waiting::kNothing;
}

void meet_warp(const char* name, const Site& site) {
  warp_operation(
      name, nullptr, nullptr, [](const void* const*, void* const*) {}, site);
}

// ---------------------------------------------------------------------------------------------------- mbarriers

Mbarrier& mbarrier_at(int64_t at, const Site& site) {
  auto& all = self().block->mbarriers;
  const auto found = all.find(at);
  if (found == all.end()) {
    fault(FaultKind::kUninitialized, "uses byte " + std::to_string(at) + " of shared memory, which is no mbarrier", site);
  }
  if (!is_ordered(found->second.made)) fault(FaultKind::kRace, "uses an mbarrier that is being made", site);
  return found->second;
}

void end_phase(Mbarrier& barrier) {
  if (barrier.missing > 0 || barrier.bytes != 0) return;
  barrier.missing = barrier.arrivals;
  ++barrier.phase;
}

}  // namespace

void init_mbarrier(int64_t at, int arrivals, const Site& site) {
  check_shared_alignment(at, 8, site);
  Thread& t = self();
  if (arrivals < 1 || arrivals >= 1 << 20) fault(FaultKind::kLimit, "makes an mbarrier of no arrivals, or too many", site);
  shared_memory().begin_mbarrier(at, site);
  t.block->mbarriers[at] = {.arrivals = arrivals, .missing = arrivals, .made = now(), .proxy_fences = t.proxy_fences};
  t.block->ended.erase(at);
}

void arrive(int64_t at, int64_t expected_bytes, const Site& site) {
  Mbarrier& barrier = mbarrier_at(at, site);
  barrier.bytes += expected_bytes;
  if (barrier.missing-- == 0)
    fault(FaultKind::kMissingWait, "arrives where all have arrived, before the phase of the mbarrier has ended", site);
  end_phase(barrier);
}

bool phase_has_ended(const Thread& t) { return t.block->mbarriers.at(t.mbarrier).phase % 2 != t.parity; }

void wait_mbarrier(int64_t at, uint32_t parity, const Site& site) {
  Thread& t = self();
  if (parity > 1) fault(FaultKind::kLimit, "waits for the parity " + std::to_string(parity), site);
  mbarrier_at(at, site);
  t.site = site, t.mbarrier = at, t.parity = parity;
  if (!phase_has_ended(t)) {
    t.waiting = Waiting::kMbarrier;
    yield();
  }
  t.ended[at] = mbarrier_at(at, site).phase;
}

void explain_mbarrier(const Thread& t) {
  const Mbarrier& barrier = t.block->mbarriers.at(t.mbarrier);
  throw Fault(FaultKind::kDeadlock, describe(t.site) + ": " + who(t) + " waits for a phase of parity " +
                                        std::to_string(t.parity) + " of the mbarrier at " + std::to_string(t.mbarrier) +
                                        "; phase " + std::to_string(barrier.phase) + " lacks " +
                                        std::to_string(barrier.missing) + " of " + std::to_string(barrier.arrivals) +
                                        " arrivals and " + std::to_string(barrier.bytes) + " bytes, and nobody can go on");
}

bool has_ended(int64_t mbarrier, uint32_t phase) {
  const auto more = [&](const std::map<int64_t, uint32_t>& ended) {
    const auto found = ended.find(mbarrier);
    return found != ended.end() && found->second > phase;
  };
  return more(self().ended) || more(self().block->ended);
}

void proxy_fence() { ++self().proxy_fences; }
uint32_t proxy_fences() { return self().proxy_fences; }
bool is_fenced(const Moment& write, uint32_t by_then) { return self().block->threads[write.thread].proxy_fences > by_then; }

void change_registers(const char* name, int registers, const Site& site) {
  if (registers < 24 || registers > 256 || registers % 8 != 0) {
    fault(FaultKind::kLimit, std::to_string(registers) + " registers; expected a multiple of 8 from 24 to 256", site);
  }
  meet(name, site, [] {});
}

// ---------------------------------------------------------------------------------------------------- Tiles

namespace {

// The stub's own words in a CUtensorMap.
struct Map {
  uint64_t magic;
  const uint8_t* matrix;
  uint64_t columns, rows, stride;
  uint32_t box_columns, box_rows;
};
constexpr uint64_t kMagic = 0x70616d726f736e65;

const Map& map_at(const void* map, const Site& site) {
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0)
    fault(FaultKind::kAlignment, "copies by a map that is at no multiple of 64 bytes", site);
  const Map& found = *static_cast<const Map*>(map);
  if (found.magic != kMagic) fault(FaultKind::kUninitialized, "copies by what is no map of a matrix", site);
  return found;
}

}  // namespace

int encode_tensor_map(void* map, const void* matrix, const uint64_t (&sizes)[2], uint64_t stride,
                      const uint32_t (&box)[2]) {
  constexpr int kInvalidValue = 1;
  const bool aligned = reinterpret_cast<uintptr_t>(map) % 64 == 0 && reinterpret_cast<uintptr_t>(matrix) % 16 == 0;
  const auto holds = [](uint64_t size) { return size >= 1 && size <= uint64_t{1} << 32; };
  const bool fits = box[0] % 16 == 0 && box[0] > 0 && box[0] <= kRow && box[1] > 0 && box[1] <= 256;
  if (!aligned || !holds(sizes[0]) || !holds(sizes[1]) || !fits) return kInvalidValue;
  if (stride % 16 != 0 || stride < sizes[0] || stride >= uint64_t{1} << 40) return kInvalidValue;
  const Map made{kMagic, static_cast<const uint8_t*>(matrix), sizes[0], sizes[1], stride, box[0], box[1]};
  std::memset(map, 0, 128);
  std::memcpy(map, &made, sizeof made);
  return 0;
}

void copy_tile(int64_t at, const void* map, int column, int row, int64_t mbarrier, const Site& site) {
  const Map& m = map_at(map, site);
  if (m.box_columns != kRow) fault(FaultKind::kLimit, "copies rows of other than 128 bytes", site);
  if (at % kPattern != 0) fault(FaultKind::kAlignment, "copies a tile to no multiple of 1024 bytes of shared memory", site);
  const Mbarrier& barrier = mbarrier_at(mbarrier, site);
  if (!is_fenced(barrier.made, barrier.proxy_fences))
    fault(FaultKind::kMissingWait, "copies a tile for an mbarrier that was made without a proxy fence behind", site);
  for (int64_t i = 0; i < kRow * m.box_rows; i += kChunk) shared_memory().begin_tile(at + i, mbarrier, barrier.phase, site);
  self().block->tiles.push_back({&self(), at, mbarrier, map, column, row, site});
}

bool deliver_tile(Block& block) {
  if (block.tiles.empty()) return false;
  const auto next = block.tiles.begin() + static_cast<int64_t>(block.random() % block.tiles.size());
  const TileCopy tile = *next;
  block.tiles.erase(next);
  const As as(*tile.by);
  const Map& m = map_at(tile.map, tile.site);
  for (int64_t r = 0; r < m.box_rows; ++r) {
    uint8_t bytes[kRow] = {};
    const int64_t row = tile.row + r, column = tile.column;
    const int64_t first = std::max<int64_t>(column, 0), end = std::min(column + kRow, static_cast<int64_t>(m.columns));
    if (row >= 0 && row < static_cast<int64_t>(m.rows) && first < end) {
      const auto [memory, at] = global_place(m.matrix + row * static_cast<int64_t>(m.stride) + first, 1, tile.site);
      memory.read(at, bytes + (first - column), end - first, tile.site);
    }
    for (int64_t c = 0; c < kRow / kChunk; ++c)
      block.shared->end_tile(tile.to + r * kRow + (c ^ r % 8) * kChunk, bytes + c * kChunk);
  }
  Mbarrier& barrier = mbarrier_at(tile.mbarrier, tile.site);
  barrier.bytes -= kRow * m.box_rows;
  end_phase(barrier);
  return true;
}

void check_tiles_came(const Block& block) {
  if (block.tiles.empty()) return;
  throw Fault(FaultKind::kUnfinished, describe(block.tiles.front().site) + ": block " + std::to_string(block.index) +
                                          " leaves with copies of tiles on their way");
}

// ---------------------------------------------------------------------------------------------------- wgmma

namespace {

// Where byte k of row r of an operand lies.
class Operand {
 public:
  Operand(uint64_t descriptor, const Site& site) : first_(static_cast<int64_t>(descriptor & 0x3fff) * 16) {
    const auto eight_rows = static_cast<int64_t>(descriptor >> 32 & 0x3fff) * 16;
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0 || eight_rows != kPattern) {
      fault(FaultKind::kLimit, "multiplies rows that do not lie as 128 swizzled bytes, eight in 1024", site);
    }
    if (first_ % kPattern >= kRow) fault(FaultKind::kAlignment, "multiplies rows from no multiple of 1024 bytes on", site);
  }
  int64_t at(int row, int k) const {
    const int64_t plain = first_ + row / 8 * kPattern + row % 8 * kRow + k;
    return plain ^ (plain / kRow % 8) * kChunk;
  }

 private:
  int64_t first_;
};

// A thread's fragments of a product, whose operands are still as they were.
void add_product(Thread& t, const Product& product, const Site& site) {
  Memory& shared = shared_memory();
  const Operand a(product.a, site), b(product.b, site);
  const int lane = t.index % kWarp, first_row = t.index % kWarpgroup / kWarp * 16 + lane / 4;
  const auto row_of = [&](const Operand& operand, int row, int8_t(&bytes)[kDepth]) {
    for (int k = 0; k < kDepth; k += kChunk) {
      std::memcpy(bytes + k, shared.bytes() + operand.at(row, k), kChunk);
      shared.end_product(operand.at(row, k));
    }
  };
  int8_t x[2][kDepth], w[kDepth];
  for (int r = 0; r < 2; ++r) row_of(a, first_row + r * 8, x[r]);
  for (int j = 0; j < kRowsOfB / 8; ++j) {
    for (int e = 0; e < 2; ++e) {
      row_of(b, j * 8 + lane % 4 * 2 + e, w);
      for (int r = 0; r < 2; ++r) {
        int32_t sum = 0;
        for (int k = 0; k < kDepth; ++k) sum += x[r][k] * w[k];
        int32_t& value = t.values[static_cast<size_t>(j * 4 + r * 2 + e)];
        value = static_cast<int32_t>(static_cast<uint32_t>(value) + static_cast<uint32_t>(sum));
      }
    }
  }
}

}  // namespace

void multiply_tile(int32_t* c, uint64_t a, uint64_t b, const Site& site) {
  Thread& t = self();
  if (!t.may_multiply) fault(FaultKind::kMissingWait, "multiplies without a wgmma.fence since its last group", site);
  if (t.products_on_their_way() == 0) {
    t.values.assign(c, c + kSums);
    std::fill(c, c + kSums, kPoison);
  } else if (t.sums != c) {
    fault(FaultKind::kLimit, "multiplies into other registers than a product on its way", site);
  }
  t.sums = c;
  t.open_products.push_back({a, b});
  meet("wgmma", site, [&] {
    const size_t first = static_cast<size_t>(t.index / kWarpgroup * kWarpgroup);
    for (size_t i = first; i < first + kWarpgroup; ++i) {
      const Product& other = t.block->threads[i].open_products.back();
      if (other.a != a || other.b != b) fault(FaultKind::kDivergence, "multiplies other matrices than its warpgroup", site);
    }
    const auto begin = [&](const Operand& operand, int rows, int readers) {
      for (int row = 0; row < rows; ++row) {
        for (int k = 0; k < kDepth; k += kChunk) shared_memory().begin_product(operand.at(row, k), readers, site);
      }
    };
    begin(Operand(a, site), kRowsOfA, 4);  // the lanes of a fragment's row
    begin(Operand(b, site), kRowsOfB, kWarpgroup / 4);
  });
}

void fence_products(const Site& site) {
  meet_warp("wgmma.fence", site);
  self().may_multiply = true;
}

void commit_products(const Site& site) {
  meet_warp("wgmma.commit_group", site);
  Thread& t = self();
  t.products.push_back(std::move(t.open_products));
  t.open_products.clear();
  t.may_multiply = false;
}

void wait_products(int groups_left, const Site& site) {
  const std::pair<int, Site> input(groups_left, site);
  // A warp's products are done for all of its lanes.
  const auto finish = [](const void* const* inputs, void* const*) {
    const auto& [left, place] = *static_cast<const std::pair<int, Site>*>(inputs[0]);
    const size_t first = static_cast<size_t>(self().warp() * kWarp);
    for (size_t i = first; i < first + kWarp; ++i) {
      Thread& t = self().block->threads[i];
      for (; static_cast<int>(t.products.size()) > left; t.products.pop_front()) {
        for (const Product& product : t.products.front()) add_product(t, product, place);
      }
    }
  };
  warp_operation("wgmma.wait_group", &input, nullptr, finish, site);
  Thread& t = self();
  if (t.sums != nullptr && t.products_on_their_way() == 0) {
    if (std::any_of(t.sums, t.sums + kSums, [](int32_t sum) { return sum != kPoison; }))
      fault(FaultKind::kMissingWait, "has written to sums of products on their way", site);
    std::copy(t.values.begin(), t.values.end(), t.sums);
    t.sums = nullptr;
  }
}

}  // namespace int8q::emulation
