// SPDX-License-Identifier: Apache-2.0
//
// int8q.hpp: the C ABI of int8q.h as header-only C++17, in one file, since one include is all that an engine takes. Handles
// are RAII and move-only, matrices are typed views, failures are exceptions. Nothing of the standard library crosses into
// libint8q.so: everything here is inline in the caller.
//
//   int8q::Context context;
//   int8q::Linear linear(context, int8q::view(weights, n, k), bias);
//   int8q::Workspace workspace;
//   linear.forward(context, int8q::view(x, m, k), int8q::view(y, m, n), workspace);
//
// Before the include:
//   INT8Q_NO_EXCEPTIONS  nothing throws; a failure is kept instead: object.status(), int8q::last_error(). Calls on an object
//                        that failed to be made return INT8Q_INVALID_HANDLE.
//   INT8Q_HPP_DLOPEN     nothing is linked: the library is opened at the first use (open_library says which), and each function
//                        is looked up at its first call.
// Translation units of one program may differ in these: what depends on them has a namespace of its own.
//
// Thread safety is the C ABI's: a Context belongs to one call at a time, a Linear is immutable and shared freely, a Workspace
// belongs to one call at a time.
#ifndef INT8Q_INT8Q_HPP_
#define INT8Q_INT8Q_HPP_

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <type_traits>
#include <utility>

#include "int8q/int8q.h"

#if defined(INT8Q_HPP_DLOPEN)
#include <dlfcn.h>
#endif
#if !defined(INT8Q_NO_EXCEPTIONS)
#include <exception>
#include <stdexcept>
#endif

#if defined(INT8Q_HPP_DLOPEN) && defined(INT8Q_NO_EXCEPTIONS)
#define INT8Q_HPP_CONFIGURATION v1_dlopen_noexc
#elif defined(INT8Q_HPP_DLOPEN)
#define INT8Q_HPP_CONFIGURATION v1_dlopen
#elif defined(INT8Q_NO_EXCEPTIONS)
#define INT8Q_HPP_CONFIGURATION v1_noexc
#else
#define INT8Q_HPP_CONFIGURATION v1
#endif

// What all configurations share, since a process has one library and a thread one last error.
namespace int8q::common_v1 {

// Of a failure that this header found; "" if the library found the last one. As in the library, no constructor runs.
inline thread_local char own_error[1024];

#if defined(INT8Q_HPP_DLOPEN)
// The library, opened once in a process and never closed (nor is this destroyed: static objects may outlive it).
struct Library {
  std::string path;
  void* handle;
  std::string reason;  // why it did not open

  explicit Library(const char* wanted)
      : path(choose(wanted)),
        handle(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)),
        reason(handle != nullptr ? "" : dlerror()) {}
  static const char* choose(const char* wanted) {
    if (wanted == nullptr) wanted = std::getenv("INT8Q_LIBRARY");
    return wanted != nullptr && *wanted != '\0' ? wanted : "libint8q.so.1";
  }
};

inline const Library& library(const char* wanted = nullptr) {
  static const Library* const opened = new Library(wanted);
  return *opened;
}
#endif

}  // namespace int8q::common_v1

namespace int8q {
inline namespace INT8Q_HPP_CONFIGURATION {

// ------------------------------------------------------------------------------------------------ Failures

#if !defined(INT8Q_NO_EXCEPTIONS)

// A call failed: its status, and the library's message as what().
class StatusError : public std::runtime_error {
 public:
  StatusError(int32_t status, const std::string& message) : std::runtime_error(message), status_(status) {}
  int32_t status() const noexcept { return status_; }

 private:
  int32_t status_;
};

// The library cannot serve this header: the level (major << 16 | minor) it wants, the one found, and where.
class AbiError : public StatusError {
 public:
  AbiError(uint32_t want, uint32_t have, const std::string& path, const std::string& message)
      : StatusError(INT8Q_ABI_MISMATCH, message), want_(want), have_(have), path_(path) {}
  uint32_t want() const noexcept { return want_; }
  uint32_t have() const noexcept { return have_; }
  const std::string& path() const noexcept { return path_; }

 private:
  uint32_t want_, have_;
  std::string path_;
};

#endif

inline uint32_t abi_version();

namespace detail {

inline std::string level_text(uint32_t level) { return std::to_string(level >> 16) + "." + std::to_string(level & 0xffff); }

// Keeps the message of a failure that this header found, for last_error.
inline int32_t own_failure(int32_t status, const std::string& message) {
  std::snprintf(common_v1::own_error, sizeof common_v1::own_error, "%s", message.c_str());
  return status;
}

// The status of a call of the library, whose message a failure leaves there.
inline int32_t called(int32_t status) {
  if (status != INT8Q_OK) common_v1::own_error[0] = '\0';
  return status;
}

#if defined(INT8Q_HPP_DLOPEN)

using common_v1::library;

inline const char* library_path() { return library().path.c_str(); }

inline void* find(const char* name) { return library().handle == nullptr ? nullptr : dlsym(library().handle, name); }

// A function that reports no status; `otherwise` if there is none of that name.
template <class F>
F* find_or(const char* name, F* otherwise) {
  void* symbol = find(name);
  return symbol == nullptr ? otherwise : reinterpret_cast<F*>(symbol);
}

inline std::string missing(const char* name, uint32_t since) {
  if (library().handle == nullptr) {
    return "int8q: " + library().path + " does not load: " + library().reason +
           "; set INT8Q_LIBRARY to the path of libint8q.so.1";
  }
  return std::string(name) + " needs ABI " + level_text(since) + ", loaded " + level_text(abi_version()) + " at " +
         library().path;
}

// Calls a function of the library by name; INT8Q_ABI_MISMATCH if it is missing.
template <class F, class... Args>
int32_t call_status(void* symbol, const char* name, Args... args) {
  if (symbol == nullptr) return own_failure(INT8Q_ABI_MISMATCH, missing(name, INT8Q_TARGET_LEVEL));
  return called(reinterpret_cast<F*>(symbol)(args...));
}

#define INT8Q_CALL(function, ...)                                                            \
  ([&]() -> int32_t {                                                                        \
    static void* const symbol = ::int8q::detail::find(#function);                            \
    return ::int8q::detail::call_status<decltype(function)>(symbol, #function, __VA_ARGS__); \
  }())
#define INT8Q_FIND_OR(function, otherwise) ::int8q::detail::find_or<decltype(function)>(#function, otherwise)

#else

inline const char* library_path() { return "the linked library"; }
#define INT8Q_CALL(function, ...) ::int8q::detail::called(function(__VA_ARGS__))
#define INT8Q_FIND_OR(function, otherwise) function

#endif

}  // namespace detail

// The loaded library's level, major << 16 | minor; 0 if no library loads.
inline uint32_t abi_version() {
  return INT8Q_FIND_OR(int8q_abi_version, [] { return uint32_t{0}; })();
}

// The message of this thread's last failed call through this header, be it the library's, why the library did not load, or
// which function it lacks; "" if there was none. Valid until the thread's next call.
inline const char* last_error() {
  return common_v1::own_error[0] != '\0' ? common_v1::own_error : INT8Q_FIND_OR(int8q_last_error, [] { return ""; })();
}

namespace detail {

// Throws unless the status is INT8Q_OK; gives it back without exceptions.
inline int32_t check(int32_t status) {
#if !defined(INT8Q_NO_EXCEPTIONS)
  if (status == INT8Q_ABI_MISMATCH) throw AbiError(INT8Q_TARGET_LEVEL, abi_version(), library_path(), last_error());
  if (status != INT8Q_OK) throw StatusError(status, last_error());
#endif
  return status;
}

// Asked by each handle that is made, so that each thread finds the reason in its last_error.
inline int32_t negotiate() {
  return check(INT8Q_CALL(int8q_negotiate, INT8Q_TARGET_LEVEL, static_cast<uint32_t*>(nullptr)));
}

// The text that write(buffer, capacity, &length) gives, as int8q_diagnose_json does.
template <class Write>
std::string text_of(Write&& write) {
  uint64_t length = 0;
  static_cast<void>(write(nullptr, uint64_t{0}, &length));
  std::string text(static_cast<size_t>(length) + 1, '\0');
  check(write(text.data(), static_cast<uint64_t>(text.size()), &length));
  text.resize(static_cast<size_t>(length));
  return text;
}

template <class Handle, int32_t (*Destroy)(Handle*)>
class Owner {
 public:
  Owner() = default;
  Owner(Owner&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)), status_(other.status_) {}
  Owner& operator=(Owner&& other) noexcept {
    if (this != &other) {
      reset();
      handle_ = std::exchange(other.handle_, nullptr);
      status_ = other.status_;
    }
    return *this;
  }
  ~Owner() { reset(); }

  Handle* get() const noexcept { return handle_; }  // the C handle, still owned
  Handle* release() noexcept { return std::exchange(handle_, nullptr); }
  int32_t status() const noexcept { return status_; }  // of the making; always INT8Q_OK where exceptions are on
  explicit operator bool() const noexcept { return handle_ != nullptr; }

 protected:
  void reset() noexcept {
    if (handle_ != nullptr) Destroy(std::exchange(handle_, nullptr));
  }
  Handle* handle_ = nullptr;
  int32_t status_ = INT8Q_OK;
};

inline int32_t destroy_context(int8q_context* c) { return INT8Q_CALL(int8q_destroy_context, c); }
inline int32_t destroy_linear(int8q_linear* l) { return INT8Q_CALL(int8q_destroy_linear, l); }
inline int32_t close_safetensors(int8q_safetensors* f) { return INT8Q_CALL(int8q_close_safetensors, f); }

}  // namespace detail

// ------------------------------------------------------------------------------------------------ Bootstrap

#if defined(INT8Q_HPP_DLOPEN)
// Opens the library at `path`, or if that is NULL at INT8Q_LIBRARY of the environment, else libint8q.so.1 where the loader
// finds it. The first use in a process decides; later calls only tell whether that one serves this header.
inline int32_t open_library(const char* path = nullptr) {
  detail::library(path);
  return detail::negotiate();
}
#endif

// "int8q 0.1.0 (ABI 1.0)"; "" if no library loads.
inline const char* version_string() {
  return INT8Q_FIND_OR(int8q_version_string, [] { return ""; })();
}

// The hash of the declarations of a level (int8q_abi_hash); NULL if the library does not know it, or none loads.
inline const char* abi_hash(uint32_t level) {
  return INT8Q_FIND_OR(int8q_abi_hash, [](uint32_t) { return static_cast<const char*>(nullptr); })(level);
}

// "INT8Q_OK", ... (int8q_status_name). Without a library that is the one status that its absence gives.
inline const char* status_name(int32_t status) {
  return INT8Q_FIND_OR(int8q_status_name, [](int32_t s) {
    return s == INT8Q_ABI_MISMATCH ? "INT8Q_ABI_MISMATCH" : "INT8Q_UNKNOWN_STATUS";
  })(status);
}

// JSON: library, CPU, ISAs, threads, GPU state (int8q_diagnose_json).
inline std::string diagnose() {
  return detail::text_of([](char* buffer, uint64_t capacity, uint64_t* length) {
    return INT8Q_CALL(int8q_diagnose_json, buffer, capacity, length);
  });
}

// ------------------------------------------------------------------------------------------------ Matrices

// 16-bit floats as bits.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
struct Dtype;
template <>
struct Dtype<float> {
  static constexpr int32_t value = INT8Q_F32;
};
template <>
struct Dtype<Float16> {
  static constexpr int32_t value = INT8Q_F16;
};
template <>
struct Dtype<BFloat16> {
  static constexpr int32_t value = INT8Q_BF16;
};
template <>
struct Dtype<int8_t> {
  static constexpr int32_t value = INT8Q_S8;
};
template <>
struct Dtype<int32_t> {
  static constexpr int32_t value = INT8Q_S32;
};

// A row-major matrix in the caller's memory, rows `ld` elements apart. T may be const for inputs. Does not own.
template <class T>
struct MatrixView {
  T* ptr;
  int64_t rows;
  int64_t cols;
  int64_t ld;

  // What may be written may be read.
  template <class U, class = std::enable_if_t<std::is_same_v<U, const T>>>
  operator MatrixView<U>() const {  // NOLINT(google-explicit-constructor): views are passed as they are
    return {ptr, rows, cols, ld};
  }
};

template <class T>
MatrixView<T> view(T* ptr, int64_t rows, int64_t cols) {
  return {ptr, rows, cols, cols};
}
template <class T>
MatrixView<T> view(T* ptr, int64_t rows, int64_t cols, int64_t ld) {
  return {ptr, rows, cols, ld};
}

// A view with its element type known at run time; what the functions below take, made from any MatrixView, or from
// nothing for "none".
struct Matrix {
  int8q_matrix c{};

  Matrix() = default;
  // NOLINTBEGIN(google-explicit-constructor): the functions below take any of these as they are
  Matrix(std::nullptr_t) {}
  Matrix(const int8q_matrix& matrix) : c(matrix) {}
  Matrix(int32_t dtype, int64_t rows, int64_t cols, const void* data)
      : c{sizeof(int8q_matrix), dtype, rows, cols, cols, const_cast<void*>(data)} {}
  template <class T>
  Matrix(const MatrixView<T>& v)
      : c{sizeof(int8q_matrix),
          Dtype<std::remove_const_t<T>>::value,
          v.rows,
          v.cols,
          v.ld,
          const_cast<std::remove_const_t<T>*>(v.ptr)} {}
  // NOLINTEND(google-explicit-constructor)

  const int8q_matrix* get() const { return c.dtype == INT8Q_DTYPE_INVALID ? nullptr : &c; }
};

// ------------------------------------------------------------------------------------------------ Handles

// ISA, threads and allocator (int8q_create_context).
class Context : public detail::Owner<int8q_context, detail::destroy_context> {
 public:
  Context() : Context(int8q_context_options{}) {}
  // threads 0: all that the process may use; isa NULL: the best of this machine.
  explicit Context(int threads, const char* isa = nullptr) : Context(make_options(threads, isa)) {}
  // options.size is filled in.
  explicit Context(int8q_context_options options) {
    status_ = detail::negotiate();
    if (status_ != INT8Q_OK) return;
    options.size = sizeof options;
    status_ = detail::check(INT8Q_CALL(int8q_create_context, &options, &handle_));
  }

  // Starts the threads now.
  int32_t prepare() { return detail::check(INT8Q_CALL(int8q_prepare_context, handle_)); }

  // Of a CUDA context: where work goes from now on.
  int32_t set_stream(void* stream) { return detail::check(INT8Q_CALL(int8q_set_stream, handle_, stream)); }

  // JSON: ISA, threads, the kernel of each operation; or GPU and launches.
  std::string describe() const {
    return detail::text_of([this](char* buffer, uint64_t capacity, uint64_t* length) {
      return INT8Q_CALL(int8q_describe_context, handle_, buffer, capacity, length);
    });
  }

 private:
  static int8q_context_options make_options(int threads, const char* isa) {
    int8q_context_options options{};
    options.threads = threads;
    options.isa = isa;
    return options;
  }
};

// 64-byte aligned memory that grows on need; contents undefined. Or the caller's, of a GPU for example, which stays as it is: a
// call that needs more says so.
class Workspace {
 public:
  Workspace() = default;
  Workspace(void* memory, uint64_t bytes) noexcept : memory_(memory), bytes_(bytes), owned_(false) {}
  Workspace(Workspace&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)),
        owned_(std::exchange(other.owned_, true)) {}
  Workspace& operator=(Workspace&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(bytes_, other.bytes_);
    std::swap(owned_, other.owned_);
    return *this;
  }
  ~Workspace() {
    if (owned_) std::free(memory_);
  }

  // At least `bytes` bytes; NULL if there is no memory, which the call that is given it then refuses.
  void* reserve(uint64_t bytes) {
    if (bytes > bytes_ && owned_) {
      std::free(memory_);
      memory_ = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
      bytes_ = memory_ == nullptr ? 0 : bytes;
    }
    return memory_;
  }
  void* get() const noexcept { return memory_; }
  uint64_t bytes() const noexcept { return bytes_; }

 private:
  void* memory_ = nullptr;
  uint64_t bytes_ = 0;
  bool owned_ = true;
};

// An int8 linear layer (int8q_create_linear).
class Linear : public detail::Owner<int8q_linear, detail::destroy_linear> {
 public:
  Linear() = default;

  // weight [N,K] of floats, quantized here; bias [1,N] or none; options as in C, its size filled in.
  Linear(Context& context, const Matrix& weight, const Matrix& bias = {}, int8q_linear_options options = {})
      : Linear(context, weight, nullptr, bias, options) {}

  // weight int8 [N,K] with col_stats [N] (bitsandbytes' CB and SCB).
  Linear(Context& context, const MatrixView<const int8_t>& weight, const float* col_stats, const Matrix& bias = {},
         int8q_linear_options options = {})
      : Linear(context, Matrix(weight), col_stats, bias, options) {}

  // Over a blob that outlives the linear (int8q_open_linear).
  static Linear open(Context& context, const void* blob, uint64_t bytes, uint32_t flags = 0) {
    Linear linear;
    linear.status_ = detail::check(INT8Q_CALL(int8q_open_linear, context.get(), blob, bytes, flags, &linear.handle_));
    return linear;
  }

  // Blob bytes of a linear [N,K], and packing into the caller's memory of that size, 64-byte aligned; open() it then.
  static uint64_t blob_bytes(int64_t out_features, int64_t in_features, bool has_bias, int64_t kept_count = 0) {
    uint64_t bytes = 0;
    detail::check(INT8Q_CALL(int8q_query_blob, out_features, in_features, has_bias ? 1 : 0, kept_count, &bytes));
    return bytes;
  }
  static int32_t pack(Context& context, const Matrix& weight, const float* col_stats, const Matrix& bias,
                      int8q_linear_options options, void* blob, uint64_t bytes) {
    options.size = sizeof options;
    return detail::check(
        INT8Q_CALL(int8q_pack_linear, context.get(), weight.get(), col_stats, bias.get(), &options, blob, bytes));
  }

  // The blob, which lives as long as the linear.
  std::pair<const void*, uint64_t> blob() const {
    std::pair<const void*, uint64_t> result{};
    detail::check(INT8Q_CALL(int8q_get_blob, handle_, &result.first, &result.second));
    return result;
  }

  // Unpacks without loss: codes int8 [N,K], col_stats [N], bias fp32 [1,N], and the kept columns' indices [kept_count] and
  // fp16 weights [N, kept_count]; each may be empty (int8q_export_linear).
  int32_t export_to(Context& context, const Matrix& codes, float* col_stats = nullptr, const Matrix& bias = {},
                    int64_t* kept_cols = nullptr, const Matrix& kept_weights = {}) const {
    return detail::check(INT8Q_CALL(int8q_export_linear, context.get(), handle_, codes.get(), col_stats, bias.get(),
                                    kept_cols, kept_weights.get()));
  }

  int8q_linear_info info() const {
    int8q_linear_info info{};
    info.size = sizeof info;
    detail::check(INT8Q_CALL(int8q_describe_linear, handle_, &info));
    return info;
  }

  uint64_t workspace_bytes(Context& context, int32_t operation, int64_t rows, int32_t parts = 0) const {
    uint64_t bytes = 0;
    detail::check(INT8Q_CALL(int8q_query_workspace, context.get(), handle_, operation, rows, parts, &bytes));
    return bytes;
  }

  // y [M,N] = x [M,K] . W^T + bias (int8q_forward); the workspace grows on need.
  int32_t forward(Context& context, const Matrix& x, const Matrix& y, Workspace& workspace, uint32_t flags = 0) const {
    void* memory = workspace.reserve(workspace_bytes(context, INT8Q_FORWARD, x.c.rows));
    return detail::check(
        INT8Q_CALL(int8q_forward, context.get(), handle_, x.get(), flags, y.get(), memory, workspace.bytes()));
  }

  // dx [M,K] = gradient to the input for dy [M,N] (int8q_backward).
  int32_t backward(Context& context, const Matrix& dy, const Matrix& dx, Workspace& workspace, uint32_t flags = 0) const {
    void* memory = workspace.reserve(workspace_bytes(context, INT8Q_BACKWARD, dy.c.rows));
    return detail::check(
        INT8Q_CALL(int8q_backward, context.get(), handle_, dy.get(), flags, dx.get(), memory, workspace.bytes()));
  }

 private:
  Linear(Context& context, const Matrix& weight, const float* col_stats, const Matrix& bias, int8q_linear_options options) {
    options.size = sizeof options;
    status_ = detail::check(
        INT8Q_CALL(int8q_create_linear, context.get(), weight.get(), col_stats, bias.get(), &options, &handle_));
  }
};

// ys[i] = x . W_i^T + bias_i for several linears (q, k, v) from one quantized x; at most 64 of them, else
// INT8Q_INVALID_ARGUMENT.
inline int32_t forward_many(Context& context, const Linear* const* linears, int32_t count, const Matrix& x,
                            const Matrix* ys, Workspace& workspace, uint32_t flags = 0) {
  constexpr int32_t kMost = 64;
  if (count < 0 || count > kMost) {
    return detail::check(detail::own_failure(
        INT8Q_INVALID_ARGUMENT, "count is " + std::to_string(count) + "; expected 0 to " + std::to_string(kMost)));
  }
  const int8q_linear* handles[kMost] = {};
  const int8q_matrix* outs[kMost] = {};
  uint64_t bytes = 0;
  for (int32_t i = 0; i < count; ++i) {
    handles[i] = linears[i]->get();
    outs[i] = ys[i].get();
    const uint64_t need = linears[i]->workspace_bytes(context, INT8Q_FORWARD, x.c.rows);
    bytes = need > bytes ? need : bytes;
  }
  void* memory = workspace.reserve(bytes);
  return detail::check(
      INT8Q_CALL(int8q_forward_many, context.get(), handles, count, x.get(), flags, outs, memory, workspace.bytes()));
}

// ------------------------------------------------------------------------------------------------ Part-wise forward
// For engines whose threads are already inside; the engine's barrier stands between the two (int8q_quantize_part). The
// workspace is reserved before, with linear.workspace_bytes(context, INT8Q_FORWARD, rows, parts).

inline int32_t quantize_part(Context& context, const Linear& linear, const Matrix& x, const Workspace& workspace,
                             int32_t part, int32_t parts) {
  return detail::check(INT8Q_CALL(int8q_quantize_part, context.get(), linear.get(), x.get(), workspace.get(),
                                  workspace.bytes(), part, parts));
}

inline int32_t forward_part(Context& context, const Linear& linear, const Matrix& x, const Matrix& y,
                            const Workspace& workspace, int32_t part, int32_t parts, uint32_t flags = 0) {
  return detail::check(INT8Q_CALL(int8q_forward_part, context.get(), linear.get(), x.get(), flags, y.get(), workspace.get(),
                                  workspace.bytes(), part, parts));
}

// ------------------------------------------------------------------------------------------------ Stateless operations
// As their namesakes in int8q.h; bias may be {}.

// How X is decomposed: INT8Q_OUTLIERS_*, and the threshold (0: 6.0).
struct Outliers {
  int32_t mode = INT8Q_OUTLIERS_COLUMN;
  float threshold = 0.0f;
};

inline int32_t quantize_rows(Context& context, const Matrix& x, Outliers outliers, const Matrix& q, float* row_stats,
                             uint8_t* mask = nullptr, int64_t* cols = nullptr, int64_t* count = nullptr) {
  return detail::check(INT8Q_CALL(int8q_quantize_rows, context.get(), x.get(), outliers.mode, outliers.threshold, q.get(),
                                  row_stats, mask, cols, count));
}

inline int32_t multiply(Context& context, const Matrix& a, const Matrix& b, const Matrix& c) {
  return detail::check(INT8Q_CALL(int8q_multiply, context.get(), a.get(), b.get(), c.get()));
}

inline int32_t dequantize_accumulators(Context& context, const Matrix& acc, const float* row_stats, const float* col_stats,
                                       const Matrix& bias, const Matrix& y) {
  return detail::check(
      INT8Q_CALL(int8q_dequantize_accumulators, context.get(), acc.get(), row_stats, col_stats, bias.get(), y.get()));
}

inline int32_t scaled_multiply(Context& context, const Matrix& a, const float* row_stats, const Matrix& b,
                               const float* col_stats, const Matrix& bias, const Matrix& y) {
  return detail::check(
      INT8Q_CALL(int8q_scaled_multiply, context.get(), a.get(), row_stats, b.get(), col_stats, bias.get(), y.get()));
}

inline int32_t mixed_scaled_multiply(Context& context, const Matrix& x, const Matrix& a, const float* row_stats,
                                     const Matrix& b, const float* col_stats, Outliers outliers, const int64_t* cols,
                                     int64_t count, const Matrix& bias, const Matrix& y) {
  return detail::check(INT8Q_CALL(int8q_mixed_scaled_multiply, context.get(), x.get(), a.get(), row_stats, b.get(),
                                  col_stats, outliers.mode, outliers.threshold, cols, count, bias.get(), y.get()));
}

inline int32_t dequantize_rows(Context& context, const Matrix& q, const float* stats, const Matrix& y) {
  return detail::check(INT8Q_CALL(int8q_dequantize_rows, context.get(), q.get(), stats, y.get()));
}

// Calibration: counts[k] grows by the rows of x with an outlier in column k; select_outlier_cols then names the columns to
// keep in fp16 and returns how many (int8q_count_outliers, int8q_select_outlier_cols).
inline int32_t count_outliers(Context& context, const Matrix& x, float threshold, int64_t* counts) {
  return detail::check(INT8Q_CALL(int8q_count_outliers, context.get(), x.get(), threshold, counts));
}

inline int64_t select_outlier_cols(const int64_t* counts, int64_t cols, int64_t rows, double min_fraction,
                                   int64_t* outlier_cols) {
  int64_t count = 0;
  detail::check(INT8Q_CALL(int8q_select_outlier_cols, counts, cols, rows, min_fraction, outlier_cols, &count));
  return count;
}

// ------------------------------------------------------------------------------------------------ Checkpoints

// A validated, mapped safetensors file (int8q_open_safetensors). Tensors' pointers die with it.
class Safetensors : public detail::Owner<int8q_safetensors, detail::close_safetensors> {
 public:
  explicit Safetensors(const char* path) {
    status_ = detail::negotiate();
    if (status_ == INT8Q_OK) status_ = detail::check(INT8Q_CALL(int8q_open_safetensors, path, &handle_));
  }

  int64_t size() const {
    int64_t count = 0;
    detail::check(INT8Q_CALL(int8q_count_tensors, handle_, &count));
    return count;
  }

  // Ordered by name.
  int8q_tensor operator[](int64_t index) const {
    int8q_tensor tensor{};
    tensor.size = sizeof tensor;
    detail::check(INT8Q_CALL(int8q_get_tensor, handle_, index, &tensor));
    return tensor;
  }

  // True and *tensor filled if there is one of that name.
  bool find(const char* name, int8q_tensor* tensor) const {
    *tensor = {};
    tensor->size = sizeof *tensor;
    const int32_t status = INT8Q_CALL(int8q_find_tensor, handle_, name, tensor);
    if (status == INT8Q_NOT_FOUND) return false;
    return detail::check(status) == INT8Q_OK;
  }
};

// Quantizes a file or folder (int8q_quantize_checkpoint). options.size is filled in. progress(const int8q_progress&) returns
// whether to go on; an exception that it throws stops the call and is thrown on from here.
template <class Progress>
int32_t quantize_checkpoint(Context& context, const char* in, const char* out, int8q_checkpoint_options options,
                            Progress&& progress) {
  struct Call {
    std::remove_reference_t<Progress>& progress;
#if !defined(INT8Q_NO_EXCEPTIONS)
    std::exception_ptr thrown{};
#endif
    int32_t stop(const int8q_progress& p) {
#if !defined(INT8Q_NO_EXCEPTIONS)
      try {
        return progress(p) ? 0 : 1;
      } catch (...) {
        thrown = std::current_exception();
        return 1;
      }
#else
      return progress(p) ? 0 : 1;
#endif
    }
  } call{progress};
  const int8q_progress_fn report = [](void* self, const int8q_progress* p) { return static_cast<Call*>(self)->stop(*p); };
  options.size = sizeof options;
  const int32_t status = INT8Q_CALL(int8q_quantize_checkpoint, context.get(), in, out, &options, report, &call);
#if !defined(INT8Q_NO_EXCEPTIONS)
  if (call.thrown) std::rethrow_exception(call.thrown);
#endif
  return detail::check(status);
}

inline int32_t quantize_checkpoint(Context& context, const char* in, const char* out,
                                   int8q_checkpoint_options options = {}) {
  return quantize_checkpoint(context, in, out, options, [](const int8q_progress&) { return true; });
}

}  // namespace INT8Q_HPP_CONFIGURATION
}  // namespace int8q

#undef INT8Q_CALL
#undef INT8Q_FIND_OR
#undef INT8Q_HPP_CONFIGURATION

#endif  // INT8Q_INT8Q_HPP_
