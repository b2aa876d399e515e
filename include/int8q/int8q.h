/* SPDX-License-Identifier: Apache-2.0
 *
 * int8q.h: the whole stable C ABI of int8q, LLM.int8() on the CPU and on CUDA GPUs (arXiv 2208.07339). In one file, which
 * whoever binds it can read alone.
 *
 * Notation. X[M,K] activations, W[N,K] weights, Y[M,N] = X . W^T + bias. row_stats[M] and col_stats[N] are absmax in
 * input units (bitsandbytes' SCA and SCB), not scales: a code q stands for q * stat / 127.
 *
 * Rules that hold for every function below:
 *  - It returns an int32_t status, INT8Q_OK or one of the numbers pinned below, unless it says otherwise. On any other
 *    status than INT8Q_OK nothing was written to the caller's outputs, unless it says otherwise, and int8q_last_error()
 *    names the argument, its value and what was expected. Which ones it returns is said behind "Returns", without the
 *    prefix and without INTERNAL, which any function may return, and DEVICE_FAILED, which any may with a CUDA context.
 *  - No exception, signal, abort or output leaves the library. A caller's callback must return normally; a C++ exception
 *    thrown through one is caught and becomes INT8Q_INTERNAL.
 *  - Sizes, strides and indices are int64_t in elements; byte counts are uint64_t.
 *  - Pointers are host memory and may be NULL only where it is said. Matrices may start at any byte address (with a CUDA
 *    context: at a multiple of their element's size); arrays that are passed as float* or int64_t* have that type's natural
 *    alignment (else INT8Q_MISALIGNED).
 *  - With a CUDA context, what matrices' data, arrays and workspaces point to is memory of its device; handles, structs,
 *    what structs point to but for kept_weights' data, and single results that are returned through a pointer to a scalar
 *    are host memory, outlier_count of int8q_quantize_rows excepted. Work is put on the context's stream, behind what is
 *    there, and the call returns before it is done: outputs may be read once the stream has passed it, and until then inputs,
 *    outputs and workspace must stay as they are. So a workspace is for one stream or captured graph at a time, as it is for
 *    one call. A fault in a kernel is seen by a later call (INT8Q_DEVICE_FAILED).
 *  - INT8Q_CUDA_IMAGE and INT8Q_CUDA_GEMM of the environment are read when a GPU is first opened in the process, for the first
 *    context on it.
 *  - Outputs must not overlap inputs or each other, unless it is said (else INT8Q_OVERLAP).
 *  - A handle that is NULL, destroyed or foreign gives INT8Q_INVALID_HANDLE, on best effort.
 *  - A struct's first member is its size: set it to sizeof(struct). Smaller than in the level that brought the struct, or,
 *    for a struct that the library reads, larger with a non-zero unknown tail, gives INT8Q_ABI_MISMATCH. Of a struct that
 *    the library fills, members that it does not know stay as they were. Reserved members must be zero.
 *  - Thread safety: functions without a context may be called from any thread. See int8q_create_context for the others.
 */
#ifndef INT8Q_INT8Q_H_
#define INT8Q_INT8Q_H_

#include <stdint.h>

/* A level is major << 16 | minor, a uint32_t that #if can compare. Minor levels only add; a new major level would be a new
 * library name. */
#define INT8Q_LEVEL(major, minor) (65536u * (major) + (minor))
#define INT8Q_ABI_MAJOR 1
#define INT8Q_ABI_MINOR 0
#define INT8Q_ABI_LEVEL INT8Q_LEVEL(INT8Q_ABI_MAJOR, INT8Q_ABI_MINOR)

/* Define INT8Q_TARGET_LEVEL before the include to hide every declaration newer than the oldest library you run on. */
#ifndef INT8Q_TARGET_LEVEL
#define INT8Q_TARGET_LEVEL INT8Q_ABI_LEVEL
#endif

#if defined(INT8Q_BUILDING)
#define INT8Q_API __attribute__((visibility("default")))
#else
#define INT8Q_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------------------------------------------- Constants */

/* Status codes. The numbers never change. */
enum {
  INT8Q_OK = 0,
  INT8Q_INVALID_ARGUMENT = 1, /* a NULL, negative, NaN, mismatched or otherwise forbidden argument */
  INT8Q_INVALID_HANDLE = 2,   /* not a live handle of this kind */
  INT8Q_INVALID_DTYPE = 3,    /* this operation does not take this dtype here */
  INT8Q_ABI_MISMATCH = 4,     /* another level is wanted than this library offers; or a struct's size is not known */
  INT8Q_SIZE_OVERFLOW = 5,    /* a product of sizes passes 2^63, or K passes the exactness limit */
  INT8Q_OUT_OF_MEMORY = 6,    /* an allocation failed; nothing leaked */
  INT8Q_BUFFER_TOO_SMALL = 7, /* workspace, blob or text buffer; the needed size is in the message */
  INT8Q_MISALIGNED = 8,       /* workspace or blob not 64-byte aligned, or an array below its natural alignment */
  INT8Q_OVERLAP = 9,          /* an output overlaps an input or another output */
  INT8Q_NOT_FINITE = 10,      /* NaN or Inf in weights or stats; the message names the row */
  INT8Q_UNSUPPORTED = 11,     /* unknown backend or ISA, or one that this machine or file format version lacks */
  INT8Q_NO_DEVICE = 12,       /* the CUDA backend was asked for and no usable GPU is there; the message says why */
  INT8Q_BUSY = 13,            /* the context is inside another call that needs its scratch memory */
  INT8Q_NOT_FOUND = 14,       /* no such file or tensor */
  INT8Q_IO = 15,              /* the operating system refused to open, read, write, sync or rename */
  INT8Q_CORRUPT = 16,         /* a file or blob contradicts itself: truncated, lying header, wrong checksum */
  INT8Q_CANCELLED = 17,       /* a progress callback asked to stop; nothing is left behind */
  INT8Q_RUNNER_FAILED = 18,   /* the caller's parallel runner failed; outputs of this call are undefined */
  INT8Q_INTERNAL = 19,        /* a defect of the library, or an exception thrown through a caller's callback */
  INT8Q_DEVICE_FAILED = 20    /* the CUDA driver refused a call, or reports a fault of earlier work; see the message */
};

/* Element types. Computation takes F32, F16, BF16, S8 and S32 as said by each function; the rest name what safetensors
 * files hold. */
enum {
  INT8Q_DTYPE_INVALID = 0,
  INT8Q_F32 = 1,
  INT8Q_F16 = 2,
  INT8Q_BF16 = 3,
  INT8Q_S8 = 4,
  INT8Q_S32 = 5,
  INT8Q_U8 = 6,
  INT8Q_F64 = 7,
  INT8Q_S16 = 8,
  INT8Q_U16 = 9,
  INT8Q_U32 = 10,
  INT8Q_S64 = 11,
  INT8Q_U64 = 12,
  INT8Q_BOOL = 13,
  INT8Q_F8_E4M3 = 14,
  INT8Q_F8_E5M2 = 15
};

enum { INT8Q_BACKEND_AUTO = 0, INT8Q_BACKEND_CPU = 1, INT8Q_BACKEND_CUDA = 2 };

/* What leaves the int8 product. An element is an outlier where |x| >= threshold; NaN never is. Outlier elements are left
 * out of absmax in any mode. */
enum {
  INT8Q_OUTLIERS_COLUMN = 0,  /* every column with an outlier in any row, for all rows: the paper, bitsandbytes */
  INT8Q_OUTLIERS_OFF = 1,     /* nothing; threshold is ignored; a row with Inf becomes a NaN row */
  INT8Q_OUTLIERS_ELEMENT = 2, /* only the elements themselves: row i of Y does not depend on the other rows of X */
  /* everything: X stays in floating point, W is int8 (W8A16); threshold is ignored; rows as in ELEMENT, but on a GPU, where the
   * last bits of a row may depend on how many there are */
  INT8Q_OUTLIERS_ALL = 3
};

enum { INT8Q_FORWARD = 1, INT8Q_BACKWARD = 2 }; /* operations, for int8q_query_workspace */

enum { INT8Q_ACCUMULATE = 1 };     /* flag: add to the output instead of overwriting it */
enum { INT8Q_TRUST_CHECKSUM = 1 }; /* flag: int8q_open_linear skips the checksum over the packed weights */
enum { INT8Q_BORROW_WEIGHT = 1, INT8Q_BORROW_BIAS = 2 }; /* flags of int8q_linear_options */

/* ---------------------------------------------------------------------------------------------------- Structs */

typedef struct int8q_context int8q_context;
typedef struct int8q_linear int8q_linear;
typedef struct int8q_safetensors int8q_safetensors;

/* A row-major matrix in the caller's memory: element (i, j) is at data + (i * row_stride + j) * sizeof(dtype).
 * rows, cols >= 0; row_stride >= cols where rows > 1. data may be NULL where rows * cols is 0. Any byte alignment. An
 * input matrix is only read. */
typedef struct int8q_matrix {
  uint32_t size;
  int32_t dtype;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
  void* data;
} int8q_matrix;

/* The caller's memory for everything that a context allocates; of a CUDA context, for everything on its device,
 * which is the calling thread's current one then. Thread-safe if contexts are used from several threads. Both functions may
 * call the library, with another context. allocate returns `bytes` bytes aligned to `alignment` (a power of two, at most
 * 4096), or NULL; NULL, or memory that is not so aligned, which deallocate then gets, makes the call return
 * INT8Q_OUT_OF_MEMORY. What deallocate gets may still be in use by work on the context's stream. */
typedef struct int8q_allocator {
  uint32_t size;
  uint32_t reserved;
  void* opaque;
  void* (*allocate)(void* opaque, uint64_t bytes, uint64_t alignment);
  void (*deallocate)(void* opaque, void* memory, uint64_t bytes);
} int8q_allocator;

/* One task of a parallel phase. index is in [0, count); thread is in [0, max_threads) and unlike that of every task that
 * runs at the same time. */
typedef void (*int8q_task)(void* arg, int64_t index, int32_t thread);

/* The caller's threads. run calls task(arg, i, thread) once for each i in [0, count), in any order, on any threads, also
 * one after another, and returns 0 once all of them have returned, else non-zero. One call a phase; a task never waits
 * for another. */
typedef struct int8q_parallel_runner {
  uint32_t size;
  int32_t max_threads; /* 1 to 1024 */
  void* opaque;
  int32_t (*run)(void* opaque, int64_t count, int8q_task task, void* arg);
} int8q_parallel_runner;

typedef struct int8q_context_options {
  uint32_t size;
  int32_t backend; /* INT8Q_BACKEND_*; AUTO takes the CPU at this level */
  int32_t threads; /* of the library's own pool; 0: from affinity mask and cgroup quota; at most 1024 */
  int32_t device;  /* CUDA: the GPU's ordinal, as CUDA counts them; the CPU: 0 */
  const char* isa; /* "generic", "avx2", ...; NULL: INT8Q_CPU_ISA of the environment, else the best of this machine */
  const int8q_parallel_runner* runner; /* NULL: the library's own pool. Copied. */
  const int8q_allocator* allocator;    /* NULL: aligned_alloc and free, or cuMemAlloc and cuMemFree. Copied. */
  void* stream; /* CUDA: a CUstream or cudaStream_t of the device's primary context; NULL: the default stream. CPU: NULL */
} int8q_context_options;

typedef struct int8q_linear_options {
  uint32_t size;
  int32_t outlier_mode;     /* INT8Q_OUTLIERS_*; 0 is COLUMN */
  float threshold;          /* > 0; 0 selects 6.0; ignored in modes OFF and ALL */
  uint32_t flags;           /* INT8Q_BORROW_WEIGHT | INT8Q_BORROW_BIAS, or 0 */
  const int64_t* kept_cols; /* [kept_count] ascending columns whose weights are also kept in fp16; NULL if none */
  int64_t kept_count;
  const int8q_matrix* kept_weights; /* F16 [N, kept_count]; NULL: rounded from a float weight; needed for S8 weights */
} int8q_linear_options;

typedef struct int8q_linear_info {
  uint32_t size;
  int32_t outlier_mode;
  float threshold;
  int32_t has_bias;     /* 0 or 1 */
  int64_t out_features; /* N */
  int64_t in_features;  /* K */
  int64_t kept_count;
  uint64_t blob_bytes; /* of a CUDA context's linear: bytes of device memory that it allocated */
} int8q_linear_info;

/* One tensor of a safetensors file. Pointers belong to the file handle. */
typedef struct int8q_tensor {
  uint32_t size;
  int32_t dtype;
  const char* name; /* UTF-8, NUL-terminated */
  int64_t rank;
  const int64_t* shape; /* [rank] */
  const void* data;     /* the mapped file, read-only; any alignment */
  uint64_t bytes;
} int8q_tensor;

enum { INT8Q_PHASE_PLAN = 0, INT8Q_PHASE_WRITE = 1, INT8Q_PHASE_FINISH = 2 }; /* int8q_progress.phase */

/* int8q_progress.action: the tensor becomes int8, or is copied, and why. */
enum {
  INT8Q_TENSOR_QUANTIZE = 0,
  INT8Q_TENSOR_COPY_DTYPE = 1,   /* it is not F32, F16 or BF16 */
  INT8Q_TENSOR_COPY_SHAPE = 2,   /* it is not 2-D */
  INT8Q_TENSOR_COPY_NAME = 3,    /* its name is neither P.weight nor weight */
  INT8Q_TENSOR_COPY_INCLUDE = 4, /* no pattern of include is found in its name */
  INT8Q_TENSOR_COPY_EXCLUDE = 5  /* a pattern of exclude is found in its name, or nn.MultiheadAttention reads it */
};

/* What int8q_quantize_checkpoint is doing. PLAN comes once for each tensor before anything is written; WRITE repeatedly,
 * at least once a tensor; FINISH once, after all is in place. */
typedef struct int8q_progress {
  uint32_t size;
  int32_t phase;
  const char* file;   /* output file's name, relative to the output */
  const char* tensor; /* NULL in FINISH */
  int32_t action;     /* INT8Q_TENSOR_*; 0 in FINISH */
  int32_t dtype;      /* of the input tensor */
  int64_t rows;       /* N of a tensor to quantize, else 0 */
  int64_t cols;       /* K of a tensor to quantize, else 0 */
  uint64_t bytes_in;  /* PLAN: this tensor's; WRITE, FINISH: input bytes consumed so far */
  uint64_t bytes_out; /* PLAN: this tensor's with its stats; WRITE, FINISH: output bytes written so far */
  uint64_t total_in;  /* of the whole checkpoint; 0 in PLAN */
  uint64_t total_out; /* likewise */
} int8q_progress;

/* Non-zero asks to stop: the call then returns INT8Q_CANCELLED. The struct is valid during the call only. */
typedef int32_t (*int8q_progress_fn)(void* opaque, const int8q_progress* progress);

typedef struct int8q_checkpoint_options {
  uint32_t size;
  int32_t dry_run;            /* 1: only the PLAN calls; nothing is written, `out` may be NULL */
  int32_t overwrite;          /* 1: an existing file or folder `out` is replaced at the end; 0: it is an error */
  float threshold;            /* written to quantization_config; 0 selects 6.0 */
  const char* const* include; /* [include_count] ECMAScript regexes searched in tensor names; NULL: "\.weight$" */
  int64_t include_count;
  const char* const* exclude; /* [exclude_count] likewise; NULL: embeddings, norms, output heads (transformers' default) */
  int64_t exclude_count;
} int8q_checkpoint_options;

/* ---------------------------------------------------------------------------------------------------- Bootstrap
 * These seven exist for ever, with these signatures, in every later library. */

/* The ABI level of the loaded library, INT8Q_LEVEL(major, minor). Never fails. */
INT8Q_API uint32_t int8q_abi_version(void);

/* Whether this library serves callers built for level `want`: same major and no newer minor. *got (may be NULL) is set to
 * int8q_abi_version() in either case. Returns ABI_MISMATCH. */
INT8Q_API int32_t int8q_negotiate(uint32_t want, uint32_t* got);

/* SHA-256, as 64 hexadecimal digits, over the declarations of one level: a binding that was generated from another
 * declaration of the same level is refused by comparing it. NULL if the library does not know the level. Static memory. */
INT8Q_API const char* int8q_abi_hash(uint32_t level);

/* The message of this thread's last failed call, "" if there was none. Success leaves it as it is. Valid until this
 * thread's next call into the library. Never NULL. */
INT8Q_API const char* int8q_last_error(void);

/* "INT8Q_OK", ...; "INT8Q_UNKNOWN_STATUS" for a number that this library does not know. Static memory. */
INT8Q_API const char* int8q_status_name(int32_t status);

/* "int8q 0.1.0 (ABI 1.0)". Static memory. */
INT8Q_API const char* int8q_version_string(void);

/* Writes a JSON object, NUL-terminated, that describes library, CPU, ISAs (found, runnable, chosen and why), threads and
 * GPUs: {"state": "works", "no driver" (no libcuda.so.1 is found), "driver too old", "fails" (libcuda.so.1 is found, but does
 * not load or is no driver, as the toolkit's stub; or the driver or the GPU does not start), "no GPU", "no kernels" or "not
 * built", "why":, "driver": CUDA's version, null if not known, "images": [the architectures that it has kernels for],
 * "devices": [{"device":, "name":, "capability":, "image": what it runs, "why": null, or why it does not work}, ...]}. Each GPU
 * is opened for it and closed again, unless a context has opened it; CUDA stays initialized in this process. *length (may be
 * NULL) is set to the needed bytes without the NUL, also when the text does not fit in `capacity` bytes (buffer may be NULL if
 * capacity is 0): then BUFFER_TOO_SMALL.
 * Returns INVALID_ARGUMENT, OUT_OF_MEMORY, BUFFER_TOO_SMALL. */
INT8Q_API int32_t int8q_diagnose_json(char* buffer, uint64_t capacity, uint64_t* length);

/* ---------------------------------------------------------------------------------------------------- Context */

/* Makes a context: an ISA, threads and an allocator; or a GPU, a stream and an allocator.
 *
 * A CUDA context works in the device's primary context, which CUDA's runtime and torch share, and loads the kernels of that
 * GPU's architecture, once a process and device; isa, threads and runner are of no use to it and must be their zeros. CUDA is
 * reached by dlopen of libcuda.so.1, which comes with the driver; nothing else of CUDA need be installed. After a fork a
 * process that had used CUDA gets NO_DEVICE, as CUDA itself would.
 *
 * options  NULL: all defaults. Environment variables are read here, once: INT8Q_CPU_ISA (if options->isa is NULL) and
 *          INT8Q_NUM_THREADS (if options->threads is 0).
 * context  receives the handle; INT8Q_OK only.
 *
 * Returns INVALID_ARGUMENT, ABI_MISMATCH, OUT_OF_MEMORY; UNSUPPORTED for an ISA that is unknown (the message lists the
 * names) or that this CPU lacks; NO_DEVICE for the CUDA backend without a usable GPU: no driver, one that does not load or
 * start, is of before CUDA 12.0 or does not take the kernels, no such GPU, no kernels for it, another INT8Q_CUDA_IMAGE than it
 * runs, or INT8Q_CUDA_GEMM=cublaslt where no cuBLASLt loads.
 *
 * Thread safety: a context belongs to one call at a time; make one a thread. What happens if it is shared all the same is
 * still defined: int8q_forward, int8q_forward_many and int8q_backward find the pool busy and run serially on their own
 * thread; the stateless operations, which use the context's scratch memory, return INT8Q_BUSY; the part-wise calls are
 * made for it. Destroying a context that is in use is the caller's error. Threads start at the first parallel call. After
 * fork the child's contexts rebuild their threads at the first call. Since level 1.0. */
INT8Q_API int32_t int8q_create_context(const int8q_context_options* options, int8q_context** context);

/* Ends the threads and frees the scratch memory. Linears live on. Returns INVALID_HANDLE, for NULL too. */
INT8Q_API int32_t int8q_destroy_context(int8q_context* context);

/* Starts the pool's threads now instead of at the first parallel call. Threads that the system refuses to start are done
 * without. A CUDA context is prepared when it is made: the first int8q_forward, int8q_forward_many or
 * int8q_backward can be captured in a CUDA graph. Stateless operations use scratch memory: before one is captured it has to have
 * run at the largest size that the context will see.
 * Returns INVALID_HANDLE. */
INT8Q_API int32_t int8q_prepare_context(int8q_context* context);

/* The stream on which a CUDA context puts work from now on, as int8q_context_options.stream. It waits for nothing: order
 * streams yourself where the new one reads what the old one writes, the context's scratch memory included, which the
 * stateless operations use. Returns INVALID_ARGUMENT (a CPU context), INVALID_HANDLE. Since level 1.0. */
INT8Q_API int32_t int8q_set_stream(int8q_context* context, void* stream);

/* Writes a JSON object: {"backend": "cpu", "isa":, "threads":, "runner":, "kernels": {operation: kernel name, ...}}, or
 * {"backend": "cuda", "device":, "name":, "capability":, "image":, "gemm": "int8q" or "cuBLASLt ...", "launches":}, of which launches counts the kernels that this
 * context has launched. Buffer and length as in int8q_diagnose_json. Returns INVALID_ARGUMENT, INVALID_HANDLE,
 * OUT_OF_MEMORY, BUFFER_TOO_SMALL. */
INT8Q_API int32_t int8q_describe_context(int8q_context* context, char* buffer, uint64_t capacity, uint64_t* length);

/* Fills a runner that runs tasks on the OpenMP threads of a runtime that the process has loaded already, torch's libgomp say.
 * Between a program's own parallel regions such threads spin for a while, and a second pool would have to wait for CPUs.
 *
 * library  name or path, as dlopen takes it, of GNU's libgomp or LLVM's libomp (GOMP_parallel, omp_get_thread_num,
 *          omp_get_max_threads); it is not loaded, and stays loaded
 * threads  most threads of a call, 1 to 1024; what omp_get_max_threads gives at each call limits them, too
 * runner   receives what options->runner of a context takes, valid for ever; a few bytes are kept for each call of this
 *          function. In a forked child, where OpenMP's threads are gone, it runs tasks one after another.
 *
 * Returns INVALID_ARGUMENT, ABI_MISMATCH, OUT_OF_MEMORY; NOT_FOUND for a library that is not loaded or no such runtime.
 * Thread safety: any thread. Since level 1.0. */
INT8Q_API int32_t int8q_find_openmp_runner(const char* library, int32_t threads, int8q_parallel_runner* runner);

/* ---------------------------------------------------------------------------------------------------- Stateless operations
 * bitsandbytes' shape: nothing is kept from call to call but the context's scratch memory, which grows on need through
 * the context's allocator. All of them succeed on empty matrices; K = 0 gives accumulators of 0.
 * Returns (each, unless it has a list of its own) INVALID_ARGUMENT, INVALID_HANDLE, INVALID_DTYPE, ABI_MISMATCH,
 * SIZE_OVERFLOW, OUT_OF_MEMORY, MISALIGNED, OVERLAP, BUSY, RUNNER_FAILED. Results do not depend on ISA, threads
 * or runner; of a GPU, integers and what is quantized are the same bits, floating-point results are within the bounds of
 * docs/cuda. Since level 1.0. */

/* Quantizes each row on its own (vector-wise, paper section 3.1; bitsandbytes' int8_vectorwise_quant).
 *
 *   row_stats[i] = max |x[i,:]| over the row's elements that are no outliers; NaN for a row with NaN (or Inf, mode OFF)
 *   q[i,j] = rint(x[i,j] * (127 * (1 / row_stats[i]))), half to even, each operation in fp32 (what torch computes for
 *            x * (127 / row_stats)); rint((x / row_stats) * 127) where row_stats < 2^-120;
 *            0 for outlier elements, in mode COLUMN for whole outlier columns; 0 where row_stats is 0 or NaN
 *
 * x             F32, F16 or BF16 [M,K]; a GPU's shared memory bounds K, at 260,000 columns or more (else SIZE_OVERFLOW)
 * outlier_mode  INT8Q_OUTLIERS_*
 * threshold     > 0, +Inf allowed; 0 selects 6.0; ignored in modes OFF and ALL. ALL is COLUMN for the least threshold that
 *               there is: every element but 0 and NaN is an outlier, and so q is 0, and row_stats 0 or, of a row with NaN, NaN
 * q             S8 [M,K]
 * row_stats     [M]
 * outlier_mask  [K] bytes 0 or 1: the column holds an outlier; may be NULL
 * outlier_cols  [K]: receives the ascending indices of those columns; entries past the count stay untouched; may be NULL
 * outlier_count receives their number; may be NULL if outlier_cols is */
INT8Q_API int32_t int8q_quantize_rows(int8q_context* context, const int8q_matrix* x, int32_t outlier_mode, float threshold,
                                      const int8q_matrix* q, float* row_stats, uint8_t* outlier_mask, int64_t* outlier_cols,
                                      int64_t* outlier_count);

/* C = A . B^T in 32-bit integers, exact (bitsandbytes' int8_linear_matmul).
 * a S8 [M,K], b S8 [N,K], c S32 [M,N]. K <= 133,144, and <= 131,071 where a or b holds -128, or on a GPU, whose memory is not
 * looked at (else SIZE_OVERFLOW). */
INT8Q_API int32_t int8q_multiply(int8q_context* context, const int8q_matrix* a, const int8q_matrix* b,
                                 const int8q_matrix* c);

/* y = float(acc) * ((row_stats * col_stats) * (1/16129)) + bias, rounded once to y's type (bitsandbytes' int8_mm_dequant).
 * acc S32 [M,N]; row_stats [M]; col_stats [N]; bias F32, F16 or BF16 [1,N] or NULL; y F32, F16 or BF16 [M,N]. */
INT8Q_API int32_t int8q_dequantize_accumulators(int8q_context* context, const int8q_matrix* acc, const float* row_stats,
                                                const float* col_stats, const int8q_matrix* bias, const int8q_matrix* y);

/* int8q_multiply and int8q_dequantize_accumulators in one (bitsandbytes' int8_scaled_mm). Arguments as there. */
INT8Q_API int32_t int8q_scaled_multiply(int8q_context* context, const int8q_matrix* a, const float* row_stats,
                                        const int8q_matrix* b, const float* col_stats, const int8q_matrix* bias,
                                        const int8q_matrix* y);

/* The scaled product plus the outlier columns in floating point (paper section 3.2; bitsandbytes' int8_mixed_scaled_mm).
 *
 *   o = sum over outlier_cols k, ascending, of x[i,k] * w[j,k], one fp32 fmaf chain; w = (b * col_stats) * (1/127)
 *   y = fmaf(float(a.b), (row_stats * col_stats) * (1/16129), o) + bias
 *
 * x             F32, F16 or BF16 [M,K]
 * a             S8 [M,K], zero where x's part is taken by o, as int8q_quantize_rows makes it
 * outlier_mode  COLUMN, ELEMENT or ALL; in ELEMENT only elements with |x| >= threshold enter o, else whole columns
 * outlier_cols  [outlier_count] ascending, in [0, K); may be NULL if outlier_count is 0. On a GPU other columns are passed over.
 * The others as in int8q_scaled_multiply. */
INT8Q_API int32_t int8q_mixed_scaled_multiply(int8q_context* context, const int8q_matrix* x, const int8q_matrix* a,
                                              const float* row_stats, const int8q_matrix* b, const float* col_stats,
                                              int32_t outlier_mode, float threshold, const int64_t* outlier_cols,
                                              int64_t outlier_count, const int8q_matrix* bias, const int8q_matrix* y);

/* y = (q * stats) * (1/127), row by row (bitsandbytes' int8_vectorwise_dequant).
 * q S8 [M,K]; stats [M]; y F32, F16 or BF16 [M,K]. */
INT8Q_API int32_t int8q_dequantize_rows(int8q_context* context, const int8q_matrix* q, const float* stats,
                                        const int8q_matrix* y);

/* Calibration, step 1: adds to counts[k] the number of rows of x in which |x[i,k]| >= threshold (0 selects 6.0).
 * x F32, F16 or BF16 [M,K]; counts [K], zeroed by the caller before the first batch. */
INT8Q_API int32_t int8q_count_outliers(int8q_context* context, const int8q_matrix* x, float threshold, int64_t* counts);

/* Calibration, step 2: names the columns that were outliers in at least min_fraction of `rows` rows and at least once (the
 * paper: .06 of the sequence positions), to be given as int8q_linear_options.kept_cols.
 * counts [cols]; rows > 0: how many rows were counted in all; min_fraction in [0, 1]; outlier_cols [cols] receives the
 * ascending indices; *outlier_count their number. Returns INVALID_ARGUMENT, SIZE_OVERFLOW, MISALIGNED, OVERLAP. */
INT8Q_API int32_t int8q_select_outlier_cols(const int64_t* counts, int64_t cols, int64_t rows, double min_fraction,
                                            int64_t* outlier_cols, int64_t* outlier_count);

/* ---------------------------------------------------------------------------------------------------- The linear layer
 * An int8q_linear is immutable and may be used from any thread and with any context of its backend and device, whatever its
 * ISA: there is one packed layout. Its blob (magic, layout id, sizes, checksums, panels of 16 rows of W) can lie in the
 * library's memory or in the caller's, an mmap'ed file's for example. A linear of a CUDA context has no blob: its codes are
 * rows as in a checkpoint, on the device. int8q_open_linear makes one from a blob, and int8q_export_linear brings it back.
 * Since level 1.0. */

/* Bytes of the blob of a linear [N,K]; has_bias is 0 or 1. Returns INVALID_ARGUMENT, SIZE_OVERFLOW (K > 133,144). */
INT8Q_API int32_t int8q_query_blob(int64_t out_features, int64_t in_features, int32_t has_bias, int64_t kept_count,
                                   uint64_t* bytes);

/* Quantizes (or takes quantized) weights and packs them into memory of the context's allocator.
 *
 * weight     F32, F16 or BF16 [N,K] to be quantized row by row; or S8 [N,K] with its col_stats. Not needed afterwards.
 * col_stats  [N] for S8 weights, finite and >= 0; NULL for float weights
 * bias       F32, F16 or BF16 [1,N]; may be NULL
 * options    NULL: mode COLUMN, threshold 6, no kept columns. Kept columns stay in the int8 weights as well; where such a
 *            column is an outlier column of X, its fp16 weights are used in place of q * col_stats / 127.
 *            INT8Q_BORROW_WEIGHT, CUDA and S8 alone: codes and col_stats are used where they are, a checkpoint's in place,
 *            and must stay valid and unchanged while the linear lives; rows that begin at multiples of 16 bytes are fastest.
 *            INT8Q_BORROW_BIAS, CUDA alone: the bias is used where it is, and must stay valid; it may change, and is not
 *            checked.
 * linear     receives the handle
 *
 * A CUDA context waits for its stream here, since stats and bias are checked on the host: not within a capture. Memory of the
 * host, where its GPU reads none, is an INVALID_ARGUMENT; calls that do not wait do not look.
 *
 * Returns INVALID_ARGUMENT, INVALID_HANDLE, INVALID_DTYPE, ABI_MISMATCH, SIZE_OVERFLOW (K as in int8q_multiply),
 * OUT_OF_MEMORY, MISALIGNED, BUSY, RUNNER_FAILED; NOT_FINITE names the row of a NaN or Inf in weight, col_stats, bias or
 * kept weights (a float weight beyond 65504 in a kept column counts). */
INT8Q_API int32_t int8q_create_linear(int8q_context* context, const int8q_matrix* weight, const float* col_stats,
                                      const int8q_matrix* bias, const int8q_linear_options* options, int8q_linear** linear);

/* The same into the caller's blob of blob_bytes >= int8q_query_blob, 64-byte aligned. Use int8q_open_linear on it.
 * Returns also BUFFER_TOO_SMALL, OVERLAP, UNSUPPORTED (a CUDA context). When it fails, the blob's contents are undefined and do
 * not open. */
INT8Q_API int32_t int8q_pack_linear(int8q_context* context, const int8q_matrix* weight, const float* col_stats,
                                    const int8q_matrix* bias, const int8q_linear_options* options, void* blob,
                                    uint64_t blob_bytes);

/* Validates a blob and makes a linear over it, without copying; a CUDA context copies it to its device and waits. The blob is
 * only read, is 64-byte aligned, and must stay valid and unchanged while the linear lives. flags: INT8Q_TRUST_CHECKSUM skips
 * reading the packed weights (everything that memory safety depends on is validated all the same). Returns CORRUPT, MISALIGNED,
 * UNSUPPORTED (a newer layout), INVALID_ARGUMENT, INVALID_HANDLE, OUT_OF_MEMORY. */
INT8Q_API int32_t int8q_open_linear(int8q_context* context, const void* blob, uint64_t blob_bytes, uint32_t flags,
                                    int8q_linear** linear);

/* The linear's blob: *blob points to *bytes bytes that live as long as the linear. Returns INVALID_ARGUMENT,
 * INVALID_HANDLE, UNSUPPORTED (a linear of a CUDA context). */
INT8Q_API int32_t int8q_get_blob(const int8q_linear* linear, const void** blob, uint64_t* bytes);

/* Fills *info; set info->size before. Returns INVALID_ARGUMENT, INVALID_HANDLE, ABI_MISMATCH. */
INT8Q_API int32_t int8q_describe_linear(const int8q_linear* linear, int8q_linear_info* info);

/* Unpacks without loss. Each output may be NULL: codes S8 [N,K]; col_stats [N]; bias F32 [1,N] (INVALID_ARGUMENT if the
 * linear has none); kept_cols [kept_count]; kept_weights F16 [N, kept_count]. A CUDA context waits for its stream where a
 * borrowed bias is F16 or BF16: not within a capture.
 * Returns INVALID_ARGUMENT, INVALID_HANDLE, INVALID_DTYPE, ABI_MISMATCH, SIZE_OVERFLOW, MISALIGNED, OVERLAP,
 * RUNNER_FAILED. */
INT8Q_API int32_t int8q_export_linear(int8q_context* context, const int8q_linear* linear, const int8q_matrix* codes,
                                      float* col_stats, const int8q_matrix* bias, int64_t* kept_cols,
                                      const int8q_matrix* kept_weights);

/* Frees the handle, and its blob if the library made it. Returns INVALID_HANDLE, for NULL too. */
INT8Q_API int32_t int8q_destroy_linear(int8q_linear* linear);

/* Bytes of workspace for `operation` (INT8Q_FORWARD, INT8Q_BACKWARD) on `rows` rows with this context; monotone in rows.
 * parts: 0 for the context's own threads, else the number of parts of the part-wise calls, at most 1024; ignored by CUDA.
 * Returns INVALID_ARGUMENT, INVALID_HANDLE, SIZE_OVERFLOW. */
INT8Q_API int32_t int8q_query_workspace(int8q_context* context, const int8q_linear* linear, int32_t operation, int64_t rows,
                                        int32_t parts, uint64_t* bytes);

/* Y = X . W^T + bias by LLM.int8(): quantize, int8 product, outlier columns in floating point, dequantize.
 *
 *   y = fmaf(float(acc), (row_stats * col_stats) * (1/16129), o) + bias, with o as in int8q_mixed_scaled_multiply
 *   y = o + bias, with o over all columns, in mode ALL
 *
 * On a GPU y has the expression and bounds of docs/cuda.
 *
 * x          F32, F16 or BF16 [M,K]
 * flags      0 or INT8Q_ACCUMULATE: y = y_before + (the above), added in fp32, rounded once
 * y          F32, F16 or BF16 [M,N], not necessarily x's type
 * workspace  64-byte aligned, >= int8q_query_workspace(context, linear, INT8Q_FORWARD, M, 0); no state in it before or
 *            after; one a concurrent call
 *
 * A row of x with NaN gives a NaN row, alone; Inf counts as in floating point, but in mode OFF as NaN.
 * Allocates nothing and takes no lock, but for starting the threads at the first call, which int8q_prepare_context can do
 * before, and for INT8Q_CUDA_GEMM=cublaslt, which is to compare with: it takes a lock, and its first call of a size cannot be
 * captured.
 * Returns INVALID_ARGUMENT, INVALID_HANDLE, INVALID_DTYPE, ABI_MISMATCH, SIZE_OVERFLOW, BUFFER_TOO_SMALL, MISALIGNED,
 * OVERLAP, RUNNER_FAILED. */
INT8Q_API int32_t int8q_forward(int8q_context* context, const int8q_linear* linear, const int8q_matrix* x, uint32_t flags,
                                const int8q_matrix* y, void* workspace, uint64_t workspace_bytes);

/* Several linears (q, k, v; gate, up) from one quantized x: `count` of them, 0 to 64. All share K, outlier_mode and
 * threshold. ys[i] is linears[i]'s output; outputs must not overlap. The workspace is the largest of theirs. Bit for bit
 * what int8q_forward gives. Returns the same as int8q_forward. */
INT8Q_API int32_t int8q_forward_many(int8q_context* context, const int8q_linear* const* linears, int32_t count,
                                     const int8q_matrix* x, uint32_t flags, const int8q_matrix* const* ys, void* workspace,
                                     uint64_t workspace_bytes);

/* For engines whose own threads are already inside: each of `parts` threads calls int8q_quantize_part(part), the engine's
 * barrier follows, then each calls int8q_forward_part(part), for one linear or several of the same K, mode and threshold.
 * All pass the same x, workspace and parts; the workspace is int8q_query_workspace(..., M, parts)'s, the largest of the
 * linears'. part is in [0, parts), parts 1 to 1024. The context may be shared by these threads. Once all parts have
 * returned, y is bit for bit what int8q_forward gives. An engine that calls forward_part before the barrier gets undefined
 * values, no more. Returns INVALID_ARGUMENT, INVALID_HANDLE, INVALID_DTYPE, ABI_MISMATCH, SIZE_OVERFLOW, BUFFER_TOO_SMALL,
 * MISALIGNED, OVERLAP, UNSUPPORTED (a CUDA context). */
INT8Q_API int32_t int8q_quantize_part(int8q_context* context, const int8q_linear* linear, const int8q_matrix* x,
                                      void* workspace, uint64_t workspace_bytes, int32_t part, int32_t parts);
INT8Q_API int32_t int8q_forward_part(int8q_context* context, const int8q_linear* linear, const int8q_matrix* x,
                                     uint32_t flags, const int8q_matrix* y, void* workspace, uint64_t workspace_bytes,
                                     int32_t part, int32_t parts);

/* Gradient to the input (LoRA): dX[M,K] = (dY[M,N] o col_stats/127) . Wq[N,K], accumulated in fp32. The int8 weights are
 * frozen; outlier and kept columns are int8 here (bitsandbytes' backward). On one ISA the result is the same for any number
 * of threads, any other rows of dY, and every run; ISAs may differ, each within the bound of docs/numerics. On a GPU, with
 * the bounds of docs/cuda, a row may depend on how many there are.
 * dy F32, F16 or BF16 [M,N]; dx F32, F16 or BF16 [M,K]; flags and workspace (INT8Q_BACKWARD) as in int8q_forward.
 * Returns the same as int8q_forward. */
INT8Q_API int32_t int8q_backward(int8q_context* context, const int8q_linear* linear, const int8q_matrix* dy, uint32_t flags,
                                 const int8q_matrix* dx, void* workspace, uint64_t workspace_bytes);

/* ---------------------------------------------------------------------------------------------------- Checkpoints */

/* Maps a safetensors file read-only and validates its header before anything else: size, JSON, dtypes, shapes, offsets in
 * range, without overlap, gap or duplicate name. Returns NOT_FOUND, IO, CORRUPT, UNSUPPORTED (an unknown dtype),
 * OUT_OF_MEMORY, INVALID_ARGUMENT. A file that somebody truncates while it is open is that somebody's error. */
INT8Q_API int32_t int8q_open_safetensors(const char* path, int8q_safetensors** file);

/* *count receives the number of tensors. Returns INVALID_ARGUMENT, INVALID_HANDLE. */
INT8Q_API int32_t int8q_count_tensors(const int8q_safetensors* file, int64_t* count);

/* Tensor `index` in [0, count), ordered by name. Set tensor->size before. Returns INVALID_ARGUMENT (another index too),
 * INVALID_HANDLE, ABI_MISMATCH. */
INT8Q_API int32_t int8q_get_tensor(const int8q_safetensors* file, int64_t index, int8q_tensor* tensor);

/* Tensor `name`. Set tensor->size before. Returns INVALID_ARGUMENT, INVALID_HANDLE, ABI_MISMATCH,
 * OUT_OF_MEMORY, NOT_FOUND. */
INT8Q_API int32_t int8q_find_tensor(const int8q_safetensors* file, const char* name, int8q_tensor* tensor);

/* Unmaps; every pointer that came from it dies. Returns INVALID_HANDLE, for NULL too. */
INT8Q_API int32_t int8q_close_safetensors(int8q_safetensors* file);

/* Quantizes a checkpoint to bitsandbytes' int8 layout: each chosen 2-D float tensor `P.weight` becomes `P.weight` S8 [N,K],
 * `P.SCB` F32 [N] and `P.weight_format` U8 scalar 0; all others are copied byte for byte.
 *
 * in        a .safetensors file, or a Hugging Face folder: model.safetensors or a sharded index; config.json receives the
 *           quantization_config, other files are copied
 * out       likewise a file or folder; written under a temporary name, synced, renamed: on any failure nothing is left
 * options   NULL: defaults
 * progress  may be NULL
 *
 * Memory is bounded by a few row blocks, not by the model. Returns NOT_FOUND, IO (full disk), CORRUPT, UNSUPPORTED (already
 * quantized; no safetensors in the folder; a CUDA context), SIZE_OVERFLOW (K > 133,144), NOT_FINITE (names tensor and row),
 * CANCELLED, INVALID_ARGUMENT (a bad regex), INVALID_HANDLE, ABI_MISMATCH, OUT_OF_MEMORY, BUSY, RUNNER_FAILED. */
INT8Q_API int32_t int8q_quantize_checkpoint(int8q_context* context, const char* in, const char* out,
                                            const int8q_checkpoint_options* options, int8q_progress_fn progress,
                                            void* opaque);

#ifdef __cplusplus
}
#endif

#endif /* INT8Q_INT8Q_H_ */
