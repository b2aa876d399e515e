// SPDX-License-Identifier: Apache-2.0
//
// What each byte of shared and global memory went through, and which accesses that forbids.
#include <algorithm>
#include <map>

#include "cuda_emulation/emulator.h"
#include "cuda_emulation/reach.h"

namespace int8q::emulation {
namespace {

constexpr uint8_t kPoison = 0xa5;
constexpr int64_t kChunkBytes = 16;

std::map<const uint8_t*, Memory*> global;  // by end address

bool same_warp(const Moment& a, const Moment& b) { return a.block == b.block && a.thread / kWarp == b.thread / kWarp; }

// Whether what was done at `then` is over for who is at `at`.
bool ordered(const Moment& then, const Moment& at) {
  if (then.launch != at.launch) return true;
  if (then.block != at.block) return has_been_told(then);
  if (then.thread == at.thread || then.block_epoch < at.block_epoch) return true;
  return (same_warp(then, at) && then.warp_epoch < at.warp_epoch) || knows_by_mbarrier(then);
}

}  // namespace

bool (*reaches)(const void* p) = nullptr;

bool is_ordered(const Moment& then) { return ordered(then, now()); }

// body(byte, its place) for each byte of [at, at + count); once for a word whose bytes are alike.
template <class Body>
void Memory::for_each(int64_t at, int64_t count, const Body& body) {
  for (const int64_t end = at + count; at < end;) {
    Word& word = words_[static_cast<size_t>(at / kWordBytes)];
    if (word.bytes == nullptr && at % kWordBytes == 0 && end - at >= kWordBytes) {
      body(word.alike, at);
      at += kWordBytes;
    } else {
      if (word.bytes == nullptr) split(at / kWordBytes);
      body((*word.bytes)[static_cast<size_t>(at % kWordBytes)], at);
      ++at;
    }
  }
}

void Memory::split(int64_t w) {
  Word& word = words_[static_cast<size_t>(w)];
  word.bytes = std::make_unique<std::array<Byte, kWordBytes>>();
  word.bytes->fill(word.alike);
  if (word.alike.readers != Byte::kBlock) return;
  const auto found = readers_.find(w * kWordBytes);
  if (found == readers_.end()) return;
  for (int64_t i = 1; i < kWordBytes; ++i) readers_[w * kWordBytes + i] = found->second;
}

// Makes these bytes alike.
void Memory::set(int64_t at, int64_t count, const Byte& byte) {
  for (const int64_t end = at + count; at < end;) {
    Word& word = words_[static_cast<size_t>(at / kWordBytes)];
    if (at % kWordBytes == 0 && end - at >= kWordBytes) {
      word.alike = byte;
      word.bytes.reset();
      at += kWordBytes;
    } else {
      for_each(at, 1, [&](Byte& its, int64_t) { its = byte; });
      ++at;
    }
  }
}

void Memory::mark_written(int64_t at, int64_t count) {
  set(at, count, {.state = Byte::kWritten});
  readers_.erase(readers_.lower_bound(at), readers_.lower_bound(at + count));
}

bool Memory::written(int64_t at) const {
  const Word& word = words_[static_cast<size_t>(at / kWordBytes)];
  const Byte& byte = word.bytes == nullptr ? word.alike : (*word.bytes)[static_cast<size_t>(at % kWordBytes)];
  return byte.state == Byte::kWritten;
}

void Memory::check(int64_t at, int64_t count, const Site& site) const {
  if (at < 0 || at + count > size()) {
    fault(FaultKind::kBounds,
          "touches " + std::to_string(count) + " bytes at " + std::to_string(at) + " of " + std::to_string(size()) +
              " of " + name_,
          site);
  }
}

void Memory::race(const char* what, const Moment& other, int64_t at, const Site& site) const {
  fault(FaultKind::kRace,
        std::string(what) + " thread " + std::to_string(other.thread) + " of block " + std::to_string(other.block) +
            ", byte " + std::to_string(at) + " of " + name_,
        site);
}

void Memory::read(int64_t at, void* to, int64_t count, const Site& site) { read(at, to, count, true, site); }

// notes: who writes there must wait for it as for a thread's own read.
void Memory::read(int64_t at, void* to, int64_t count, bool notes, const Site& site) {
  check(at, count, site);
  const Moment moment = now();
  for_each(at, count, [&](Byte& byte, int64_t i) {
    if (byte.state == Byte::kOnItsWay) {
      fault(FaultKind::kMissingWait, "reads byte " + std::to_string(i) + " of " + name_ + " before its copy is waited for",
            site);
    }
    if (byte.state == Byte::kMbarrier) race("reads the mbarrier of", byte.write, i, site);
    if (byte.state == Byte::kUnwritten) {
      fault(FaultKind::kUninitialized, "reads byte " + std::to_string(i) + " of " + name_ + ", which nobody wrote", site);
    }
    if (of_tile(i)) {
      check_tile(i, site);
    } else if (!ordered(byte.write, moment)) {
      race("reads what is being written by", byte.write, i, site);
    }
    if (notes) note_read(byte, i, moment);
  });
  if (to != nullptr) std::memcpy(to, bytes_ + at, static_cast<size_t>(count));
}

void Memory::note_read(Byte& byte, int64_t at, const Moment& moment) {
  const bool old = byte.readers == Byte::kNone || ordered(byte.read, moment);
  if (old && (byte.read.launch != moment.launch || byte.read.block != moment.block ||
              byte.read.block_epoch < moment.block_epoch || byte.readers == Byte::kNone)) {
    if (byte.readers == Byte::kBlock) readers_.erase(at);
    byte.readers = Byte::kThread;
  } else if (byte.read.block != moment.block) {
    byte.readers = Byte::kBlocks;
  } else if (!same_warp(byte.read, moment) || byte.readers == Byte::kBlock) {
    if (has_mbarriers()) {
      std::map<uint32_t, uint32_t>& epochs = readers_[at];
      epochs[byte.read.thread / kWarp] = byte.read.warp_epoch;
      epochs[moment.thread / kWarp] = moment.warp_epoch;
    }
    byte.readers = std::max(byte.readers, Byte::kBlock);
  } else if (byte.read.thread != moment.thread && byte.read.warp_epoch == moment.warp_epoch) {
    byte.readers = std::max(byte.readers, Byte::kWarp);
  }
  byte.read = moment;
}

// Whether the running thread knows of all that read this byte since the block's last barrier that they are done.
bool Memory::all_told(int64_t at) const {
  const auto found = readers_.find(at);
  return found != readers_.end() && std::ranges::all_of(found->second, [](const auto& reader) {
           return knows_by_mbarrier({.thread = reader.first * kWarp, .warp_epoch = reader.second});
         });
}

void Memory::check_write(const Byte& byte, int64_t at, const Moment& moment, bool atomic, bool tile,
                         const Site& site) const {
  if (byte.state == Byte::kOnItsWay) {
    fault(FaultKind::kMissingWait, "writes byte " + std::to_string(at) + " of " + name_ + ", which a copy is to fill",
          site);
  }
  if (byte.state == Byte::kMbarrier) race("writes the mbarrier of", byte.write, at, site);
  if (!chunks_.empty()) {
    const Chunk& its = chunks_[static_cast<size_t>(at / kChunkBytes)];
    if (its.readers > 0) {
      fault(FaultKind::kMissingWait,
            "writes byte " + std::to_string(at) + " of " + name_ + ", which a product on its way has to read", site);
    }
    // A tile comes behind mbarriers; threads behind one of the block.
    if (!tile && its.product.launch == moment.launch && its.product.block_epoch >= moment.block_epoch)
      race("writes what is being read by a product of", its.product, at, site);
  }
  if (byte.state == Byte::kWritten && !(atomic && byte.atomic) && !ordered(byte.write, moment)) {
    race("writes what is being written by", byte.write, at, site);
  }
  const Moment& read = byte.read;
  bool over = byte.readers == Byte::kNone || read.launch != moment.launch;
  if (!over && byte.readers != Byte::kBlocks) {
    over = ordered(read, moment);
    if (read.block == moment.block && read.block_epoch == moment.block_epoch) {
      if (byte.readers == Byte::kBlock) over = all_told(at);
      if (byte.readers == Byte::kWarp)
        over = (same_warp(read, moment) && read.warp_epoch < moment.warp_epoch) || knows_by_mbarrier(read);
    }
  }
  if (!over) race("writes what is being read by", read, at, site);
}

// Makes the running thread the writer of these bytes.
void Memory::claim(int64_t at, int64_t count, Byte::State state, bool atomic, bool tile, const Site& site) {
  check(at, count, site);
  const Moment moment = now();
  for_each(at, count, [&](Byte& byte, int64_t i) {
    check_write(byte, i, moment, atomic, tile, site);
    if (byte.readers == Byte::kBlock) readers_.erase(i);
  });
  set(at, count, {.write = moment, .proxy_fences = proxy_fences(), .state = state, .atomic = atomic});
  if (!chunks_.empty()) chunks_[static_cast<size_t>(at / kChunkBytes)].mbarrier = -1;
}

void Memory::write(int64_t at, const void* from, int64_t count, const Site& site) {
  claim(at, count, Byte::kWritten, false, false, site);
  std::memcpy(bytes_ + at, from, static_cast<size_t>(count));
}

uint64_t Memory::atomic(int64_t at, int64_t count, const std::function<uint64_t(uint64_t)>& change, const Site& site) {
  check(at, count, site);
  for_each(at, count, [&](const Byte& byte, int64_t i) {
    if (byte.state != Byte::kUnwritten) return;
    fault(FaultKind::kUninitialized, "changes byte " + std::to_string(i) + " of " + name_ + ", which nobody wrote", site);
  });
  claim(at, count, Byte::kWritten, true, false, site);
  uint64_t before = 0;
  std::memcpy(&before, bytes_ + at, static_cast<size_t>(count));
  const uint64_t after = change(before);
  std::memcpy(bytes_ + at, &after, static_cast<size_t>(count));
  return before;
}

void Memory::begin_copy(int64_t at, int64_t count, const Site& site) {
  claim(at, count, Byte::kOnItsWay, false, false, site);
  std::memset(bytes_ + at, kPoison, static_cast<size_t>(count));
}

void Memory::end_copy(int64_t at, const void* from, int64_t count, const Site& site) {
  check(at, count, site);
  const Moment moment = now();
  for_each(at, count, [&](Byte& byte, int64_t) {
    byte.state = Byte::kWritten;
    byte.write = moment;
  });
  std::memcpy(bytes_ + at, from, static_cast<size_t>(count));
}

// ---------------------------------------------------------------------------------------------------- sm_90a

Memory::Chunk& Memory::chunk(int64_t at) {
  if (chunks_.empty()) chunks_.resize(static_cast<size_t>((size() + kChunkBytes - 1) / kChunkBytes));
  return chunks_[static_cast<size_t>(at / kChunkBytes)];
}

// What a tile brought is there for who waited for it.
bool Memory::of_tile(int64_t at) const {
  return !chunks_.empty() && chunks_[static_cast<size_t>(at / kChunkBytes)].mbarrier >= 0;
}
void Memory::check_tile(int64_t at, const Site& site) const {
  const Chunk& its = chunks_[static_cast<size_t>(at / kChunkBytes)];
  if (has_ended(its.mbarrier, its.phase)) return;
  fault(FaultKind::kMissingWait,
        "reads byte " + std::to_string(at) + " of " + name_ + " without having waited at the mbarrier of its tile", site);
}

// Threads' own accesses and those of the copy engine and the tensor cores are not ordered by barriers alone.
void Memory::check_proxy(const Byte& byte, int64_t at, const Site& site) const {
  if (is_fenced(byte.write, byte.proxy_fences)) return;
  fault(FaultKind::kMissingWait,
        "lets an asynchronous operation touch byte " + std::to_string(at) + " of " + name_ +
            ", which was written without a proxy fence behind",
        site);
}

void Memory::begin_tile(int64_t at, int64_t mbarrier, uint32_t phase, const Site& site) {
  check(at, kChunkBytes, site);
  const bool by_threads = chunk(at).mbarrier < 0;
  for_each(at, kChunkBytes, [&](const Byte& byte, int64_t i) {
    if (by_threads && byte.state == Byte::kWritten) check_proxy(byte, i, site);
  });
  claim(at, kChunkBytes, Byte::kOnItsWay, false, true, site);
  std::memset(bytes_ + at, kPoison, kChunkBytes);
  chunk(at).mbarrier = mbarrier;
  chunk(at).phase = phase;
}

void Memory::end_tile(int64_t at, const void* from) {
  for_each(at, kChunkBytes, [](Byte& byte, int64_t) { byte.state = Byte::kWritten; });
  std::memcpy(bytes_ + at, from, kChunkBytes);
}

void Memory::begin_product(int64_t at, int readers, const Site& site) {
  read(at, nullptr, kChunkBytes, false, site);
  if (chunk(at).mbarrier < 0) {
    for_each(at, kChunkBytes, [&](const Byte& byte, int64_t i) { check_proxy(byte, i, site); });
  }
  chunk(at).readers += readers;
}

void Memory::end_product(int64_t at) {
  --chunk(at).readers;
  chunk(at).product = now();
}

void Memory::begin_mbarrier(int64_t at, const Site& site) {
  claim(at, 8, Byte::kWritten, false, false, site);
  for_each(at, 8, [](Byte& byte, int64_t) { byte.state = Byte::kMbarrier; });
}

Registered::Registered(void* bytes, int64_t size, const char* name)
    : memory_(std::make_unique<Memory>(static_cast<uint8_t*>(bytes), size, name)) {
  global[memory_->bytes() + std::max<int64_t>(size, 1)] = memory_.get();
}

Registered::~Registered() { global.erase(memory_->bytes() + std::max<int64_t>(memory_->size(), 1)); }

void check_shared_alignment(int64_t at, int64_t count, const Site& site) {
  if (at % count == 0) return;
  fault(FaultKind::kAlignment,
        "touches " + std::to_string(count) + " bytes at " + std::to_string(at) + " of shared memory, no multiple of that",
        site);
}

Place global_place(const void* p, int64_t count, const Site& site) {
  const auto* bytes = static_cast<const uint8_t*>(p);
  const auto found = global.upper_bound(bytes);
  if (found == global.end() || bytes < found->second->bytes()) {
    fault(FaultKind::kBounds, "touches " + std::to_string(count) + " bytes of memory that is no buffer", site);
  }
  if (reaches != nullptr && !reaches(p)) fault(FaultKind::kBounds, "touches memory of another GPU", site);
  if (reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(count) != 0) {
    fault(FaultKind::kAlignment, "touches " + std::to_string(count) + " bytes at an address that is no multiple of that",
          site);
  }
  return {*found->second, bytes - found->second->bytes()};
}

}  // namespace int8q::emulation
