# SPDX-License-Identifier: Apache-2.0
"""Contexts, and the exceptions that the library's status codes become."""

import ctypes
import json
import operator
import os
import re
import weakref

import numpy as np

from . import _abi
from ._abi import library

# ---------------------------------------------------------------------------------------------------- Errors


class StatusError(RuntimeError):
    """A call into the library failed.

    status: the number, as in int8q.h. name: "INT8Q_OVERLAP", .... str() is the library's message, which names the argument
    as Python does, its value and what was expected. The subclasses are also the exception of Python that says the same.
    """

    def __init__(self, status, name, message):
        super().__init__(message)
        self.status, self.name, self.message = status, name, message

    def __reduce__(self):
        return type(self), (self.status, self.name, self.message)


class StatusValueError(StatusError, ValueError):
    """An argument, a file or a blob that cannot be right."""


class StatusTypeError(StatusError, TypeError):
    """INT8Q_INVALID_DTYPE."""


class StatusMemoryError(StatusError, MemoryError):
    """INT8Q_OUT_OF_MEMORY."""


class StatusOSError(StatusError, OSError):
    """INT8Q_IO."""


class StatusFileNotFoundError(StatusError, FileNotFoundError):
    """INT8Q_NOT_FOUND."""


_CLASSES = {
    _abi.INT8Q_INVALID_ARGUMENT: StatusValueError,
    _abi.INT8Q_INVALID_DTYPE: StatusTypeError,
    _abi.INT8Q_SIZE_OVERFLOW: StatusValueError,
    _abi.INT8Q_OUT_OF_MEMORY: StatusMemoryError,
    _abi.INT8Q_BUFFER_TOO_SMALL: StatusValueError,
    _abi.INT8Q_MISALIGNED: StatusValueError,
    _abi.INT8Q_OVERLAP: StatusValueError,
    _abi.INT8Q_NOT_FINITE: StatusValueError,
    _abi.INT8Q_NOT_FOUND: StatusFileNotFoundError,
    _abi.INT8Q_IO: StatusOSError,
    _abi.INT8Q_CORRUPT: StatusValueError,
}


# What the library's messages call an argument, and what it is here.
_NAMES = (
    (r"\boptions->", ""),
    (r"\bbias->cols\b", "bias.shape[0]"),
    (r"\b(\w+)->rows\b", r"\1.shape[0]"),
    (r"\b(\w+)->cols\b", r"\1.shape[1]"),
    (r"\b(y|dx|ys\[i\]) at (0x\w+) overlaps ", r"out at \2 overlaps "),
    (r"\ban earlier one of ys\b", "an earlier one of outs"),
)


def check(status, names=()):
    """Raises the exception of a status other than INT8Q_OK; to be called by the thread that made the call.

    names: (pattern, replacement), more of what its message calls otherwise than Python does.
    """
    if status:
        lib = library()
        message, name = lib.int8q_last_error().decode(), lib.int8q_status_name(status).decode()
        for pattern, replacement in (*_NAMES, *names):
            message = re.sub(pattern, replacement, message)
        raise _CLASSES.get(status, StatusError)(status, name, message)


def text_of(write):
    """The text that write(buffer, capacity, length) gives."""
    length = ctypes.c_uint64()
    write(None, 0, length)
    buffer = ctypes.create_string_buffer(length.value + 1)
    check(write(buffer, len(buffer), length))
    return buffer.value.decode()


# ---------------------------------------------------------------------------------------------------- Contexts


class _Worker:
    """One native context with its workspace: what one call at a time uses."""

    def __init__(self, threads, isa, runner=None):
        options = _abi.int8q_context_options(ctypes.sizeof(_abi.int8q_context_options), threads=threads, isa=isa)
        if runner is not None:
            options.runner = ctypes.pointer(runner)
        self.handle = ctypes.POINTER(_abi.int8q_context)()
        check(library().int8q_create_context(options, self.handle))
        self.workspace, self.workspace_bytes = None, 0  # its 64-byte aligned address, its size
        weakref.finalize(self, library().int8q_destroy_context, self.handle).atexit = False

    def reserve(self, size):
        """Makes the workspace at least size bytes large."""
        if size > self.workspace_bytes:
            self._memory = aligned_bytes(size)
            self.workspace, self.workspace_bytes = self._memory.ctypes.data, size

    def query_workspace(self, linear, operation, rows):
        """The bytes that INT8Q_FORWARD or INT8Q_BACKWARD of this handle takes for so many rows."""
        size = ctypes.c_uint64()
        check(library().int8q_query_workspace(self.handle, linear, operation, rows, 0, size))
        return size.value


def aligned_bytes(size):
    """An array of size bytes that begins at a multiple of 64; contents undefined."""
    memory = np.empty(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start:][:size]  # an empty slice would begin where memory does


def _check_threads(threads):
    """The number for C, where 0 is None."""
    if threads is None:
        return 0
    expected = f"threads is {threads!r}; expected 1 to 1024, or None"
    try:
        threads = operator.index(threads)
    except TypeError:
        raise TypeError(expected) from None
    if not 1 <= threads <= 1024:
        raise ValueError(expected)
    return threads


def _check_isa(isa):
    if isa is not None and not isinstance(isa, str):
        raise TypeError(f"isa is {isa!r}; expected a str, or None")
    return isa and isa.encode()


class Context:
    """The CPU kernels and the threads that operations run on (int8q_create_context).

    threads: of the library's own pool; None: INT8Q_NUM_THREADS, else what the affinity mask and the cgroup's quota allow.
    isa: "generic", "avx2", "avxvnni", "avx512bw" or "avx512vnni"; None: INT8Q_CPU_ISA, else the best of this machine.
    Both are read back as the attributes threads and isa. Environment variables are read here, once.

    Results do not depend on either, but for backward, where ISAs may differ within its bound.

    Thread safety: any thread may use a Context, also after a fork. Calls that overlap in time get native contexts of
    their own, each with threads and a workspace, which are kept for later calls: a program that calls from many threads
    gives threads=1. A workspace keeps the size of its largest call.

    Raises TypeError, ValueError for threads outside 1 ... 1024, StatusError INT8Q_UNSUPPORTED for an ISA that is unknown or
    that this CPU lacks.
    """

    def __init__(self, threads=None, isa=None):
        self._start(_check_threads(threads), _check_isa(isa))

    @classmethod
    def on_openmp(cls, path, threads=None, isa=None):
        """A Context on the OpenMP threads that the process has (int8q_find_openmp_runner), instead of native ones.

        path: of a loaded libgomp or libomp, torch's say, whose threads spin for a while after each of its operations
        and would take the CPUs from a second pool. omp_get_max_threads (torch.set_num_threads) limits each call's threads.
        The rest as for Context(); in a forked child calls run on one thread. StatusFileNotFoundError if it is not loaded.
        """
        context = cls.__new__(cls)
        runner = _abi.int8q_parallel_runner(ctypes.sizeof(_abi.int8q_parallel_runner))
        threads = _check_threads(threads) or Context(isa=isa).threads
        check(library().int8q_find_openmp_runner(path.encode(), threads, runner), ((r"^library\b", "path"),))
        context._start(0, _check_isa(isa), runner)
        return context

    def _start(self, threads, isa, runner=None):
        worker = _Worker(threads, isa, runner)
        self._runner = runner
        self._free = [worker]  # append and pop are atomic
        description = self.describe()
        self.threads, self.isa = description["threads"], description["isa"]

    def __repr__(self):
        return f"int8q.Context(threads={self.threads}, isa={self.isa!r})"

    def _take(self):
        """A worker that no other call uses; the caller gives it back by self._free.append."""
        try:
            return self._free.pop()
        except IndexError:
            return _Worker(0 if self._runner else self.threads, self.isa.encode(), self._runner)

    def call(self, function, *arguments, names=()):
        """Calls a function of the ABI that takes a context first; raises its StatusError, as check does."""
        worker = self._take()
        try:
            check(function(worker.handle, *arguments), names)
        finally:
            self._free.append(worker)

    def run(self, function, operation, linear, workspaces, x, flags, y):
        """Calls int8q_forward or int8q_backward of a handle, on matrices.

        workspaces: of the handle, operation -> (most rows so far, bytes for these); kept up to date here.
        """
        worker = self._take()
        try:
            most_rows, size = workspaces[operation]
            if x.rows > most_rows:
                size = worker.query_workspace(linear, operation, x.rows)
                workspaces[operation] = x.rows, size
            worker.reserve(size)
            status = function(worker.handle, linear, x, flags, y, worker.workspace, worker.workspace_bytes)
            if status:
                check(status)
        finally:
            self._free.append(worker)

    def describe(self):
        """A dict: backend, isa, threads, runner, and the kernel that each operation runs (int8q_describe_context)."""
        worker = self._take()
        try:
            return json.loads(text_of(lambda *buffer: library().int8q_describe_context(worker.handle, *buffer)))
        finally:
            self._free.append(worker)

    def prepare(self):
        """Starts the threads now instead of at the first call that uses them."""
        self.call(library().int8q_prepare_context)


class _Gpu:
    """The native contexts of one GPU. A call has one to itself, of the stream that it names: a context's scratch memory is
    free for the next call on that stream alone.

    Raises StatusError INT8Q_NO_DEVICE, which says what is missing: a driver, a GPU, kernels for it.
    """

    def __init__(self, device):
        self._device = device
        self._free = {0: [self._make(0)]}  # stream -> contexts; append and pop are atomic

    def _make(self, stream):
        options = _abi.int8q_context_options(
            ctypes.sizeof(_abi.int8q_context_options), backend=_abi.INT8Q_BACKEND_CUDA, device=self._device, stream=stream
        )
        handle = ctypes.POINTER(_abi.int8q_context)()
        check(library().int8q_create_context(options, handle))
        return handle

    def call(self, stream, function, *arguments):
        """Calls a function of the ABI that takes a context first; stream: a number, CUDA's."""
        free = self._free.setdefault(stream, [])
        try:
            handle = free.pop()
        except IndexError:
            handle = self._make(stream)
        try:
            status = function(handle, *arguments)
            if status:
                check(status)
        finally:
            free.append(handle)


_gpus = {}


def gpu(device):
    """The _Gpu of a device's number, made at the first call and kept."""
    try:
        return _gpus[device]
    except KeyError:
        return _gpus.setdefault(device, _Gpu(device))


_default = None


def default_context():
    """The Context of calls that are given none: one a process, made at the first such call with Context()."""
    global _default
    if _default is None:
        _default = Context()
    return _default


_of_torch = None


def torch_context():
    """The Context of calls with tensors: on torch's OpenMP threads, unless INT8Q_OPENMP=0 or torch has none; made once.

    torch's threads poll for work for some milliseconds after each of its operations: a pool beside them waits for CPUs.
    """
    global _of_torch
    if _of_torch is None:
        path = None if os.environ.get("INT8Q_OPENMP") == "0" else _openmp_of_torch()
        _of_torch = default_context() if path is None else Context.on_openmp(path)
    return _of_torch


def _openmp_of_torch():
    """The path of the OpenMP runtime that torch loaded from its own folders, or None."""
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split(maxsplit=5)[5].rstrip() for line in maps if "/lib" in line}
    except OSError:
        return None
    found = [path for path in sorted(paths) if re.search(r"/torch(\.libs|/lib)/lib(gomp|omp|iomp5)\b[^/]*\.so", path)]
    return found[0] if found else None


def diagnose():
    """A dict that describes library, CPU, ISAs (found, runnable, chosen and why), threads and GPU state."""
    return json.loads(text_of(library().int8q_diagnose_json))
