// SPDX-License-Identifier: Apache-2.0
//
// Runs device code on the host, a fiber a thread, to find what a GPU would do wrong in silence.
//
//   emulation::Buffer<float> x(1000), y(1000);                          global memory that kernels may touch
//   emulation::launch({.blocks = 4, .threads = 128, .shared_bytes = 1024}, [&] { kernel(x.device(), y.device()); });
//
// A fault throws Fault, which names its kind, thread and place in the source:
//
//   kBounds, kAlignment  an access outside of registered or shared memory, or not at a multiple of its size
//   kUninitialized       a byte is read that nobody wrote
//   kRace                two threads touch a byte, one of them writes, and no barrier lies between
//   kMissingWait         a byte is touched that a copy still has to bring or a product still has to read; what sm_90a demands
//                        between a thread's own accesses and those of its copies and products is missing
//   kDivergence          threads of a block or a warp wait at different barriers or warp operations, or have left
//   kLimit               a launch that the architecture would refuse
//   kUnfinished          a thread leaves with copies or products on their way
//   kDeadlock            a thread waits at an mbarrier whose phase nobody can end
//
// Order: blocks run kResident at a time, their threads by turns, each until it has to wait; `seed` permutes both, and an
// odd one lets a warp of each block wait until nobody else can go on. What a barrier orders: __syncthreads the whole block,
// __syncwarp the warp; shuffles order nothing. Blocks are ordered by an atomic on global memory between fences: what a
// block did before its last barrier, a thread of it then fenced and told by an atomic, is done for the block that sees it
// by an atomic on the same word, a fence and a barrier.
// Copies by cp.async move nothing until that thread waits for them, and fill their destination with a pattern until then.
// Tiles by TMA come, in any order, when no thread of the block can go on; bytes of theirs are there for who waited at their
// mbarrier, for that phase. wgmma reads its operands when it is waited for; until then its sums are a pattern, and writing
// to its operands is a fault.
//
// It knows nothing of registers, bank conflicts, caches or weak ordering inside a warp.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

namespace int8q::emulation {

#if defined(__cpp_lib_source_location)
using Site = std::source_location;
#else  // clang-tidy 14, which only reads this
struct Site {
  static constexpr Site current() { return {}; }
  static constexpr const char* file_name() { return ""; }
  static constexpr unsigned line() { return 0; }
};
#endif

enum class FaultKind {
  kBounds,
  kAlignment,
  kUninitialized,
  kRace,
  kMissingWait,
  kDivergence,
  kLimit,
  kUnfinished,
  kDeadlock
};

struct Fault : std::runtime_error {
  Fault(FaultKind which, const std::string& what) : std::runtime_error(what), kind(which) {}
  FaultKind kind;
};

// ---------------------------------------------------------------------------------------------------- Memory

// Who touched a byte last, and when: of the launch, the block, its barriers and its warp's barriers.
struct Moment {
  uint32_t launch = 0, block = 0, thread = 0, block_epoch = 0, warp_epoch = 0;
};

struct Byte {
  enum State : uint8_t { kUnwritten, kWritten, kOnItsWay, kMbarrier };
  enum Readers : uint8_t { kNone, kThread, kWarp, kBlock, kBlocks };
  Moment write{}, read{};
  uint32_t proxy_fences = 0;  // of its writer, by then
  State state = kUnwritten;
  Readers readers = kNone;
  bool atomic = false;  // the last write was one
};

// Bytes of one address space, and what is known of each.
class Memory {
 public:
  Memory(uint8_t* bytes, int64_t size, const char* name)
      : bytes_(bytes), name_(name), size_(size), words_(static_cast<size_t>((size + kWordBytes - 1) / kWordBytes)) {}

  int64_t size() const { return size_; }
  uint8_t* bytes() const { return bytes_; }
  void mark_written(int64_t at, int64_t count);
  bool written(int64_t at) const;

  void read(int64_t at, void* to, int64_t count, const Site& site);
  void write(int64_t at, const void* from, int64_t count, const Site& site);
  // Of a word of `count` bytes, 4 or 8; returns what was there.
  uint64_t atomic(int64_t at, int64_t count, const std::function<uint64_t(uint64_t)>& change, const Site& site);
  void begin_copy(int64_t at, int64_t count, const Site& site);
  void end_copy(int64_t at, const void* from, int64_t count, const Site& site);

  // Shared memory alone, by the copy engine and tensor cores of sm_90a: 16 bytes at a multiple of that.
  void begin_tile(int64_t at, int64_t mbarrier, uint32_t phase, const Site& site);
  void end_tile(int64_t at, const void* from);
  void begin_product(int64_t at, int readers, const Site& site);
  void end_product(int64_t at);
  void begin_mbarrier(int64_t at, const Site& site);

 private:
  static constexpr int64_t kWordBytes = 4;
  struct Word {
    Byte alike;                                           // each of its bytes,
    std::unique_ptr<std::array<Byte, kWordBytes>> bytes;  // if these are not there
  };
  template <class Body>
  void for_each(int64_t at, int64_t count, const Body& body);
  void split(int64_t word);
  void set(int64_t at, int64_t count, const Byte& byte);

  struct Chunk {
    int readers = 0;        // that a product on its way still has
    int64_t mbarrier = -1;  // that told of its tile, in this phase; -1: threads wrote it
    uint32_t phase = 0;
    Moment product{};  // that read it last
  };
  Chunk& chunk(int64_t at);
  bool of_tile(int64_t at) const;
  void check_tile(int64_t at, const Site& site) const;
  void check_proxy(const Byte& byte, int64_t at, const Site& site) const;

  void check(int64_t at, int64_t count, const Site& site) const;
  void read(int64_t at, void* to, int64_t count, bool notes, const Site& site);
  void claim(int64_t at, int64_t count, Byte::State state, bool atomic, bool tile, const Site& site);
  void check_write(const Byte& byte, int64_t at, const Moment& moment, bool atomic, bool tile, const Site& site) const;
  void note_read(Byte& byte, int64_t at, const Moment& moment);
  bool all_told(int64_t at) const;
  [[noreturn]] void race(const char* what, const Moment& other, int64_t at, const Site& site) const;

  uint8_t* bytes_;
  const char* name_;
  int64_t size_;
  std::vector<Word> words_;
  std::vector<Chunk> chunks_;  // empty until one is asked for
  // Of what several warps read since the block's last barrier, where there are mbarriers: byte -> warp -> when.
  std::map<int64_t, std::map<uint32_t, uint32_t>> readers_;
};

// Exactly as many bytes as asked for, so that ASan sees what goes around the checks.
class AlignedBytes {
 public:
  AlignedBytes(int64_t size, size_t alignment)
      : bytes_(static_cast<uint8_t*>(operator new[](static_cast<size_t>(size), std::align_val_t{alignment})), {alignment}) {
  }
  uint8_t* get() const { return bytes_.get(); }

 private:
  struct Free {
    size_t alignment;
    void operator()(uint8_t* p) const { operator delete[](p, std::align_val_t{alignment}); }
  };
  std::unique_ptr<uint8_t[], Free> bytes_;
};

// Registers [bytes, bytes + size) as global memory until it is destroyed.
class Registered {
 public:
  Registered(void* bytes, int64_t size, const char* name);
  ~Registered();
  Registered(const Registered&) = delete;
  Registered& operator=(const Registered&) = delete;
  Memory& memory() const { return *memory_; }

 private:
  std::unique_ptr<Memory> memory_;
};

// Global memory of `count` T, `offset` bytes behind an address that is aligned to 256 as cudaMalloc's are. What is put in
// by `put`, `set` or the constructor counts as written.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count, const char* name = "a buffer", int64_t offset = 0)
      : storage_(count * static_cast<int64_t>(sizeof(T)) + offset, 256),
        count_(count),
        offset_(offset),
        registered_(storage_.get() + offset, count * static_cast<int64_t>(sizeof(T)), name) {}
  Buffer(const std::vector<T>& values, const char* name, int64_t offset = 0)
      : Buffer(static_cast<int64_t>(values.size()), name, offset) {
    put(0, values.data(), count_);
  }

  T* device() const { return reinterpret_cast<T*>(storage_.get() + offset_); }
  int64_t count() const { return count_; }
  // Elements from the i-th on.
  void put(int64_t i, const T* values, int64_t count) {
    if (count == 0) return;
    std::memcpy(bytes(i), values, static_cast<size_t>(count) * sizeof(T));
    registered_.memory().mark_written(i * static_cast<int64_t>(sizeof(T)), count * static_cast<int64_t>(sizeof(T)));
  }
  void set(int64_t i, T value) { put(i, &value, 1); }
  // Fault of kUninitialized if no kernel wrote it.
  T operator[](int64_t i) const {
    for (size_t b = 0; b < sizeof(T); ++b) {
      if (!written(i * static_cast<int64_t>(sizeof(T)) + static_cast<int64_t>(b))) {
        throw Fault(FaultKind::kUninitialized, "element " + std::to_string(i) + " was not written");
      }
    }
    T value;
    std::memcpy(&value, bytes(i), sizeof(T));
    return value;
  }
  bool written(int64_t byte) const { return registered_.memory().written(byte); }

 private:
  uint8_t* bytes(int64_t i) const { return storage_.get() + offset_ + i * static_cast<int64_t>(sizeof(T)); }

  AlignedBytes storage_;
  int64_t count_, offset_;
  Registered registered_;
};

// For memory.cpp: where the running thread is, whether it has been told of another block's moment, and its fault.
Moment now();
bool has_been_told(const Moment& of_other_block);
[[noreturn]] void fault(FaultKind kind, const std::string& what, const Site& site);
bool has_ended(int64_t mbarrier, uint32_t phase);  // for the running thread
uint32_t proxy_fences();                           // of the running thread
bool is_fenced(const Moment& write, uint32_t proxy_fences_by_then);
bool is_ordered(const Moment& then);         // for the running thread, by memory.cpp
bool knows_by_mbarrier(const Moment& then);  // the running thread, by who arrived where it waited
bool has_mbarriers();                        // the running thread's block

// ---------------------------------------------------------------------------------------------------- Launch

struct LaunchShape {
  int64_t blocks = 1;
  int threads = 32;
  int shared_bytes = 0;
  uint64_t seed = 0;
  int most_shared_bytes = 227 * 1024;  // that the architecture gives a block
};

inline constexpr int kWarp = 32;

void launch(const LaunchShape& shape, const std::function<void()>& kernel);

// ---------------------------------------------------------------------------------------------------- For device.h

int thread_index();
int block_index();
int block_count();

Memory& shared_memory();
void check_shared_alignment(int64_t at, int64_t count, const Site& site);
// The registered memory that holds [p, p + count), and p's place there.
struct Place {
  Memory& memory;
  int64_t at;
};
Place global_place(const void* p, int64_t count, const Site& site);

void device_fence();
void note_atomic(const void* word);  // on global memory, by the running thread
void block_barrier(const Site& site);
void leave_block(const Site& site);
void warp_barrier(const Site& site);

// All 32 lanes meet at `name`; the last one calls compute(inputs, outputs), arrays of 32 pointers to what each lane passed.
using WarpCompute = void (*)(const void* const* inputs, void* const* outputs);
void warp_operation(const char* name, const void* input, void* output, WarpCompute compute, const Site& site);

// cp.async: 16 or fewer bytes from global to shared memory, of which `valid` are read and the others zero.
void copy_async(int64_t shared_at, const void* global, int count, int valid, const Site& site);
void commit_copies();
void wait_copies(int groups_left, const Site& site);

// ---- For ptx_sm90.h

void init_mbarrier(int64_t at, int arrivals, const Site& site);
void arrive(int64_t at, int64_t expected_bytes, const Site& site);
void wait_mbarrier(int64_t at, uint32_t parity, const Site& site);
void proxy_fence();
void change_registers(const char* name, int registers, const Site& site);

// What cuTensorMapEncodeTiled would refuse is: rows of bytes, a box of at most 128 of them, swizzled by so many; a CUresult.
int encode_tensor_map(void* map, const void* matrix, const uint64_t (&sizes)[2], uint64_t stride, const uint32_t (&box)[2]);
void copy_tile(int64_t at, const void* map, int column, int row, int64_t mbarrier, const Site& site);

// c[columns / 2] of each thread += a[64][32] . b[columns][32]^T, by descriptors.
void multiply_tile(int32_t* c, int columns, uint64_t a, uint64_t b, const Site& site);
// c[columns / 2] of each thread += a[64][16] . b[columns][16]^T of fp16 or bf16 (dtype), a[4] of each thread, b by its descriptor.
void multiply_halves_tile(float* c, int columns, int32_t dtype, const uint32_t* a, uint64_t b, const Site& site);
void fence_products(const Site& site);
void commit_products(const Site& site);
void wait_products(int groups_left, const Site& site);

}  // namespace int8q::emulation
