// SPDX-License-Identifier: Apache-2.0
//
// mbarriers, tiles by the copy engine, and wgmma.
#include <algorithm>
#include <bit>
#include <cstring>

#include "core/dtype.h"
#include "cuda_emulation/engine.h"

namespace int8q::emulation {
namespace {

constexpr int64_t kRow = 128, kChunk = 16, kPattern = 8 * kRow;  // bytes: of a row, and after which the swizzle repeats
constexpr int kRowsOfA = 64, kDepth = 32;                        // of a product of codes; bytes of any
constexpr uint32_t kPoison = 0x5a5a5a5a;

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
  } else if ((group.name != name && std::strcmp(group.name, name) != 0) || group.site.line() != site.line()) {
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

// Each at least what the other is.
void raise(std::vector<uint32_t>& epochs, const std::vector<uint32_t>& others) {
  epochs.resize(std::max(epochs.size(), others.size()));
  for (size_t w = 0; w < others.size(); ++w) epochs[w] = std::max(epochs[w], others[w]);
}

void end_phase(Mbarrier& barrier) {
  if (barrier.missing > 0 || barrier.bytes != 0) return;
  barrier.missing = barrier.arrivals;
  ++barrier.phase;
  raise(barrier.told, barrier.telling);
  barrier.telling.clear();
}

// What a thread knows to be over: by mbarriers, and by its warp's last barrier.
std::vector<uint32_t> known(const Thread& t) {
  std::vector<uint32_t> epochs(t.block->warps.size());
  raise(epochs, t.told);
  const auto warp = static_cast<size_t>(t.warp());
  epochs[warp] = std::max(epochs[warp], t.block->warps[warp].epoch);
  return epochs;
}

}  // namespace

void init_mbarrier(int64_t at, int arrivals, const Site& site) {
  check_shared_alignment(at, 8, site);
  Thread& t = self();
  if (arrivals < 1 || arrivals >= 1 << 20) fault(FaultKind::kLimit, "makes an mbarrier of no arrivals, or too many", site);
  shared_memory().begin_mbarrier(at, site);
  t.block->mbarriers[at] = {
      .arrivals = arrivals, .missing = arrivals, .made = now(), .proxy_fences = t.proxy_fences, .told = {}, .telling = {}};
  t.block->ended.erase(at);
}

void arrive(int64_t at, int64_t expected_bytes, const Site& site) {
  Mbarrier& barrier = mbarrier_at(at, site);
  barrier.bytes += expected_bytes;
  if (barrier.missing-- == 0)
    fault(FaultKind::kMissingWait, "arrives where all have arrived, before the phase of the mbarrier has ended", site);
  raise(barrier.telling, known(self()));
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
  const Mbarrier& barrier = mbarrier_at(at, site);
  t.ended[at] = barrier.phase;
  raise(t.told, barrier.told);
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
  const bool fits = (box[0] == kRow || box[0] == kRow / 2) && box[1] > 0 && box[1] <= 256;
  if (!aligned || !holds(sizes[0]) || !holds(sizes[1]) || !fits) return kInvalidValue;
  if (stride % 16 != 0 || stride < sizes[0] || stride >= uint64_t{1} << 40) return kInvalidValue;
  const Map made{kMagic, static_cast<const uint8_t*>(matrix), sizes[0], sizes[1], stride, box[0], box[1]};
  std::memset(map, 0, 128);
  std::memcpy(map, &made, sizeof made);
  return 0;
}

void copy_tile(int64_t at, const void* map, int column, int row, int64_t mbarrier, const Site& site) {
  const Map& m = map_at(map, site);
  if (at % kPattern != 0) fault(FaultKind::kAlignment, "copies a tile to no multiple of 1024 bytes of shared memory", site);
  const Mbarrier& barrier = mbarrier_at(mbarrier, site);
  if (!is_fenced(barrier.made, barrier.proxy_fences))
    fault(FaultKind::kMissingWait, "copies a tile for an mbarrier that was made without a proxy fence behind", site);
  for (int64_t i = 0; i < m.box_columns * m.box_rows; i += kChunk)
    shared_memory().begin_tile(at + i, mbarrier, barrier.phase, site);
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
    const int64_t row = tile.row + r, column = tile.column, columns = m.box_columns;
    const int64_t first = std::max<int64_t>(column, 0), end = std::min(column + columns, static_cast<int64_t>(m.columns));
    if (row >= 0 && row < static_cast<int64_t>(m.rows) && first < end) {
      const auto [memory, at] = global_place(m.matrix + row * static_cast<int64_t>(m.stride) + first, 1, tile.site);
      memory.read(at, bytes + (first - column), end - first, tile.site);
    }
    const int64_t swizzle = columns == kRow ? r % 8 : r / 2 % 4;
    for (int64_t c = 0; c < columns / kChunk; ++c)
      block.shared->end_tile(tile.to + r * columns + (c ^ swizzle) * kChunk, bytes + c * kChunk);
  }
  Mbarrier& barrier = mbarrier_at(tile.mbarrier, tile.site);
  barrier.bytes -= int64_t{m.box_columns} * m.box_rows;
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

// A row of 32 bytes of an operand, as this product's reader.
template <class T>
void read_row(const Operand& operand, int row, T (&values)[kDepth / sizeof(T)]) {
  Memory& shared = shared_memory();
  for (int k = 0; k < kDepth; k += kChunk) {
    std::memcpy(reinterpret_cast<uint8_t*>(values) + k, shared.bytes() + operand.at(row, k), kChunk);
    shared.end_product(operand.at(row, k));
  }
}

// A thread's fragments of a product, whose operands are still as they were.
void add_codes(Thread& t, const Product& product, const Site& site) {
  const Operand a(product.a, site), b(product.b, site);
  const int lane = t.index % kWarp, first_row = t.index % kWarpgroup / kWarp * 16 + lane / 4;
  int8_t x[2][kDepth], w[kDepth];
  for (int r = 0; r < 2; ++r) read_row(a, first_row + r * 8, x[r]);
  for (int j = 0; j < product.columns / 8; ++j) {
    for (int e = 0; e < 2; ++e) {
      read_row(b, j * 8 + lane % 4 * 2 + e, w);
      for (int r = 0; r < 2; ++r) {
        int32_t sum = 0;
        for (int k = 0; k < kDepth; ++k) sum += x[r][k] * w[k];
        t.values[static_cast<size_t>(j * 4 + r * 2 + e)] += static_cast<uint32_t>(sum);
      }
    }
  }
}

double value_of(int32_t dtype, uint16_t bits) {
  return static_cast<double>(dtype == INT8Q_F16 ? f16_to_f32(bits) : bf16_to_f32(bits));
}

// The same of floats; quad: the lanes that share its rows.
void add_halves(Thread& t, const Product& product, const Product* const (&quad)[4], const Site& site) {
  constexpr int kHalves = kDepth / 2;
  if (!std::equal(product.fragment.begin(), product.fragment.end(), product.registers))
    fault(FaultKind::kMissingWait, "has written to registers that a product on its way reads", site);
  double x[2][kHalves];
  for (int k = 0; k < kHalves; ++k) {
    for (int r = 0; r < 2; ++r) {
      const uint32_t two = quad[k % 8 / 2]->fragment[static_cast<size_t>(k / 8 * 2 + r)];
      x[r][k] = value_of(product.dtype, static_cast<uint16_t>(two >> k % 2 * 16));
    }
  }
  const Operand b(product.b, site);
  uint16_t w[kHalves];
  for (int j = 0; j < product.columns / 8; ++j) {
    for (int e = 0; e < 2; ++e) {
      read_row(b, j * 8 + t.index % 4 * 2 + e, w);
      for (int r = 0; r < 2; ++r) {
        uint32_t& value = t.values[static_cast<size_t>(j * 4 + r * 2 + e)];
        auto sum = static_cast<double>(std::bit_cast<float>(value));
        for (int k = 0; k < kHalves; ++k) sum += x[r][k] * value_of(product.dtype, w[k]);
        value = std::bit_cast<uint32_t>(static_cast<float>(sum));
      }
    }
  }
}

void begin_product(void* c, const Product& product, const char* name, const Site& site) {
  Thread& t = self();
  if (!t.may_multiply) fault(FaultKind::kMissingWait, "multiplies without a wgmma.fence since its last group", site);
  const auto sums = static_cast<size_t>(product.columns / 2);
  if (t.products_on_their_way() == 0) {
    t.values.resize(sums);
    std::memcpy(t.values.data(), c, sums * 4);
    const std::vector<uint32_t> poison(sums, kPoison);
    std::memcpy(c, poison.data(), sums * 4);
  } else if (t.sums != c) {
    fault(FaultKind::kLimit, "multiplies into other registers than a product on its way", site);
  }
  t.sums = c;
  t.open_products.push_back(product);
  meet(name, site, [&] {
    const size_t first = static_cast<size_t>(t.index / kWarpgroup * kWarpgroup);
    for (size_t i = first; i < first + kWarpgroup; ++i) {
      const Product& other = t.block->threads[i].open_products.back();
      if (other.a != product.a || other.b != product.b)
        fault(FaultKind::kDivergence, "multiplies other matrices than its warpgroup", site);
    }
    const auto begin = [&](uint64_t descriptor, int rows, int readers) {
      const Operand operand(descriptor, site);
      for (int row = 0; row < rows; ++row) {
        for (int k = 0; k < kDepth; k += kChunk) shared_memory().begin_product(operand.at(row, k), readers, site);
      }
    };
    if (product.dtype == 0) begin(product.a, kRowsOfA, 4);  // the lanes of a fragment's row
    begin(product.b, product.columns, kWarpgroup / 4);
  });
}

}  // namespace

void multiply_tile(int32_t* c, int columns, uint64_t a, uint64_t b, const Site& site) {
  begin_product(c, {.a = a, .b = b, .columns = columns}, "wgmma of codes", site);
}

void multiply_halves_tile(float* c, int columns, int32_t dtype, const uint32_t* a, uint64_t b, const Site& site) {
  Product product{.a = 0, .b = b, .columns = columns, .dtype = dtype, .registers = a};
  std::copy_n(a, 4, product.fragment.begin());
  begin_product(c, product, "wgmma of halves", site);
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
    Thread* lanes = &self().block->threads[static_cast<size_t>(self().warp() * kWarp)];
    while (static_cast<int>(lanes[0].products.size()) > left) {
      for (size_t i = 0; i < lanes[0].products.front().size(); ++i) {
        for (int lane = 0; lane < kWarp; ++lane) {
          const auto of_lane = [&](int other) { return &lanes[other].products.front()[i]; };
          const int quad = lane / 4 * 4;
          const Product& product = *of_lane(lane);
          const As as(lanes[lane]);
          if (product.dtype == 0) {
            add_codes(lanes[lane], product, place);
          } else {
            add_halves(lanes[lane], product, {of_lane(quad), of_lane(quad + 1), of_lane(quad + 2), of_lane(quad + 3)},
                       place);
          }
        }
      }
      for (int lane = 0; lane < kWarp; ++lane) lanes[lane].products.pop_front();
    }
  };
  warp_operation("wgmma.wait_group", &input, nullptr, finish, site);
  Thread& t = self();
  if (t.sums != nullptr && t.products_on_their_way() == 0) {
    const std::vector<uint32_t> poison(t.values.size(), kPoison);
    if (std::memcmp(t.sums, poison.data(), poison.size() * 4) != 0)
      fault(FaultKind::kMissingWait, "has written to sums of products on their way", site);
    std::memcpy(t.sums, t.values.data(), t.values.size() * 4);
    t.sums = nullptr;
  }
}

}  // namespace int8q::emulation
