# SPDX-License-Identifier: Apache-2.0
"""The linear layer: int8 weights packed once, run often."""

import ctypes
import pickle
import weakref
from math import prod

import numpy as np

from . import _abi, arrays
from ._abi import library
from .arrays import HOST, S8, fold, matrix, vector
from .context import aligned_bytes, check, default_context
from .operations import OUTLIER_MODES, outlier_mode

_MODE_NAMES = {mode: name for name, mode in OUTLIER_MODES.items()}
_F16 = (np.dtype(np.float16),)


class Linear:
    """Y = X . W^T + bias by LLM.int8(), as torch.nn.Linear and bitsandbytes' Linear8bitLt compute it.

    weight: floats [N,K], quantized here row by row; or int8 [N,K] with its col_stats (bitsandbytes' weight and SCB). Not
    needed afterwards.
    bias: floats [N], or None
    col_stats: float32 [N], absmax of each row of W, for int8 weights only
    outliers: "column" (the paper, bitsandbytes): every column of X that holds an outlier is multiplied in floating point,
    for all rows; "element": only the outliers themselves, so that a row of Y does not depend on the others; "off": none;
    "all": every column, so that weights alone are int8 (W8A16): the most accurate, and threshold is ignored
    threshold: elements of X with |x| >= threshold are outliers; > 0
    kept_cols: int64, ascending: columns whose weights are also kept in fp16, and used in place of the int8 ones where the
    column holds an outlier (select_outlier_cols names them)
    kept_weights: float16 [N, number of kept_cols]; None: rounded from float weights; needed for int8 ones
    context: the Context to run on; None: the process' own

    Floats are float32, float16 or int8q.bfloat16. Arrays are NumPy's, or of any library that exports DLPack in host memory.

    Attributes: in_features, out_features, outliers, threshold, context; weight, col_stats, bias, kept_cols, kept_weights
    and blob as described there. A Linear is immutable.

    Thread safety: any thread may call it, several at a time; the GIL is released while it computes. Y does not depend on
    ISA or threads nor, with outliers other than "column", on the batch.

    Raises TypeError and ValueError, which name the argument, its value and what was expected; NaN or Inf in weight,
    col_stats, bias or kept_weights is a StatusError INT8Q_NOT_FINITE (a ValueError) that names the row.
    Source: LLM.int8() (arXiv 2208.07339) section 3.
    """

    def __init__(
        self,
        weight,
        bias=None,
        *,
        col_stats=None,
        outliers="column",
        threshold=6.0,
        kept_cols=None,
        kept_weights=None,
        context=None,
    ):
        mode = outlier_mode(outliers, threshold)
        weight = matrix(weight, "weight", S8 if col_stats is not None else arrays.FLOATS)
        kept_cols = HOST.col_numbers([] if kept_cols is None else kept_cols, "kept_cols", weight.cols)
        kept_count = kept_cols.array.size
        kept_weights = arrays.optional_matrix(kept_weights, "kept_weights", _F16)
        if kept_weights is not None:
            arrays.check_shape(kept_weights.array, "kept_weights", (weight.rows, kept_count))
        elif kept_count and col_stats is not None:
            raise ValueError(f"kept_weights is None; expected float16 ({weight.rows}, {kept_count}) beside int8 weights")
        options = _abi.int8q_linear_options(
            ctypes.sizeof(_abi.int8q_linear_options),
            mode,
            threshold,
            kept_cols=kept_cols,
            kept_count=kept_count,
            kept_weights=kept_weights and ctypes.pointer(kept_weights),
        )
        handle = ctypes.POINTER(_abi.int8q_linear)()
        context = context or default_context()
        context.call(
            library().int8q_create_linear,
            weight,
            None if col_stats is None else vector(col_stats, "col_stats", np.float32, weight.rows),
            HOST.bias_matrix(bias, weight.rows),
            options,
            handle,
        )
        self._adopt(handle, context)

    @classmethod
    def from_bytes(cls, blob, *, trust_checksum=False, context=None):
        """The layer of a blob (Linear.blob, to_bytes): any object with the buffer protocol, as np.memmap or mmap.mmap.

        The bytes are used where they are, without a copy, if they begin at a multiple of 64, and must then not change while
        the Linear lives; else they are copied. trust_checksum skips reading the packed weights, so that a mapped file is
        read at its first use; all that memory safety depends on is validated all the same.

        Raises TypeError for another object, ValueError for strided bytes, StatusError: INT8Q_CORRUPT (a ValueError),
        INT8Q_UNSUPPORTED for a newer layout.
        """
        try:
            memory = np.frombuffer(blob, np.uint8)
        except (TypeError, AttributeError):
            raise TypeError(f"blob is a {type(blob).__name__}; expected an object with the buffer protocol") from None
        except (BufferError, ValueError) as error:
            raise ValueError(f"blob is a {type(blob).__name__} without contiguous bytes: {error}") from None
        if memory.ctypes.data % 64:
            aligned = aligned_bytes(memory.size)
            aligned[:] = memory
            memory = aligned
        handle = ctypes.POINTER(_abi.int8q_linear)()
        context = context or default_context()
        flags = _abi.INT8Q_TRUST_CHECKSUM if trust_checksum else 0
        context.call(library().int8q_open_linear, memory.ctypes.data, memory.size, flags, handle)
        self = cls.__new__(cls)
        self._memory = memory
        self._adopt(handle, context)
        return self

    def _adopt(self, handle, context):
        lib = library()
        self._handle, self.context = handle, context
        weakref.finalize(self, lib.int8q_destroy_linear, handle).atexit = False
        info = _abi.int8q_linear_info(ctypes.sizeof(_abi.int8q_linear_info))
        check(lib.int8q_describe_linear(handle, info))
        self.in_features, self.out_features = info.in_features, info.out_features
        self.outliers, self.threshold = _MODE_NAMES[info.outlier_mode], info.threshold
        self._has_bias, self._kept_count = bool(info.has_bias), info.kept_count
        # operation: (most rows so far, workspace bytes for these)
        self._workspaces = {_abi.INT8Q_FORWARD: (-1, 0), _abi.INT8Q_BACKWARD: (-1, 0)}

    def __repr__(self):
        return (
            f"int8q.Linear(in_features={self.in_features}, out_features={self.out_features}, bias={self._has_bias}, "
            f"outliers={self.outliers!r}, threshold={self.threshold:g})"
        )

    # ------------------------------------------------------------------------------------------------ Running

    def __call__(self, x, out=None, accumulate=False):
        """Y = X . W^T + bias (int8q_forward).

        x: floats [..., K]. Leading dimensions are one batch: with outliers="column" they share their outlier columns.
        out: floats [..., N], overwritten and returned; rows of elements side by side, no overlap with x; None: a new array
        of x's dtype
        accumulate: adds to out instead: out + Y, rounded once

        Returns [..., N]. A row of x with NaN gives a NaN row, alone. Nothing is allocated where out is given, but for the
        workspace of a batch larger than any before.
        """
        return self._run(
            library().int8q_forward, _abi.INT8Q_FORWARD, x, "x", self.in_features, out, self.out_features, accumulate
        )

    def backward(self, dy, out=None, accumulate=False):
        """The gradient to the input, dX = (dY * col_stats / 127) . W, accumulated in fp32 (int8q_backward).

        dy: floats [..., N]; out: floats [..., K], or None for a new array of dy's dtype; accumulate: as in a forward call.
        Returns [..., K]. Weights are frozen, and int8 in all columns. Source: bitsandbytes' MatMul8bitLt.backward.
        """
        lib = library()
        return self._run(
            lib.int8q_backward, _abi.INT8Q_BACKWARD, dy, "dy", self.out_features, out, self.in_features, accumulate
        )

    def _run(self, function, operation, x, name, cols, out, out_cols, accumulate):
        x = arrays.as_array(x, name)
        shape = x.shape[:-1] + (out_cols,)
        x = matrix(fold(x, name, cols), name)
        y = _result(out, shape, x.array.dtype, accumulate)
        y_matrix = matrix(y if y.ndim == 2 else _rows(y), "out", writable=True)
        flags = _abi.INT8Q_ACCUMULATE if accumulate else 0
        self.context.run(function, operation, self._handle, self._workspaces, x, flags, y_matrix)
        return y if out is None else out

    # ------------------------------------------------------------------------------------------------ Contents

    def _export(self, codes=None, col_stats=None, bias=None, kept_cols=None, kept_weights=None):
        self.context.call(library().int8q_export_linear, self._handle, codes, col_stats, bias, kept_cols, kept_weights)

    @property
    def weight(self):
        """The weights' codes, int8 [N,K] (bitsandbytes' weight), unpacked without loss into a new array at each access."""
        codes = np.empty((self.out_features, self.in_features), np.int8)
        self._export(codes=matrix(codes, "weight", S8))
        return codes

    @property
    def col_stats(self):
        """absmax of each row of W, float32 [N] (bitsandbytes' SCB), a new array."""
        stats = np.empty(self.out_features, np.float32)
        self._export(col_stats=vector(stats, "col_stats", np.float32, self.out_features))
        return stats

    @property
    def bias(self):
        """float32 [N], a new array, or None."""
        if not self._has_bias:
            return None
        bias = np.empty(self.out_features, np.float32)
        self._export(bias=HOST.bias_matrix(bias, self.out_features))
        return bias

    @property
    def kept_cols(self):
        """The columns whose weights are also kept in fp16: int64, ascending, a new array."""
        cols = np.empty(self._kept_count, np.int64)
        self._export(kept_cols=vector(cols, "kept_cols", np.int64, self._kept_count))
        return cols

    @property
    def kept_weights(self):
        """float16 [N, number of kept_cols], a new array."""
        weights = np.empty((self.out_features, self._kept_count), np.float16)
        self._export(kept_weights=matrix(weights, "kept_weights", _F16))
        return weights

    @property
    def blob(self):
        """The packed layer, uint8, read-only and without a copy: linear.blob.tofile(path) saves it,
        Linear.from_bytes(np.memmap(path, np.uint8, "r")) maps it. The same in every process and on every ISA."""
        address, size = ctypes.c_void_p(), ctypes.c_uint64()
        check(library().int8q_get_blob(self._handle, address, size))
        return arrays.array_over(address.value, (size.value,), np.dtype(np.uint8), self)

    def to_bytes(self):
        """A copy of the blob, for from_bytes."""
        return self.blob.tobytes()

    def __reduce_ex__(self, protocol):
        """Pickles the blob, from protocol 5 on out of band where the pickler takes buffers; never the context: the copy
        runs on the process' own."""
        blob = pickle.PickleBuffer(self.blob) if protocol >= 5 else self.to_bytes()
        return type(self).from_bytes, (blob,)


def _result(out, shape, dtype, accumulate, name="out"):
    if out is None:
        if accumulate:
            raise ValueError("out is None; expected an array to accumulate into")
        return np.empty(shape, dtype)
    y = arrays.as_array(out, name, writable=True)
    if y.shape != shape:
        arrays.check_shape(y, name, shape)
    return y


def _rows(y, name="out"):
    """y [..., N] as [M,N] over the same memory."""
    rows = y.reshape(prod(y.shape[:-1]), y.shape[-1])
    if y.size and not np.may_share_memory(rows, y):
        raise ValueError(f"{name} has strides {y.strides}; expected leading dimensions that are one batch of rows")
    return rows


def _kind(linear):
    return f"in_features {linear.in_features}, outliers {linear.outliers!r}, threshold {linear.threshold:g}"


def forward_many(linears, x, outs=None):
    """[linear(x) for linear in linears] from one quantized x (int8q_forward_many): q, k and v; gate and up.

    linears: 1 to 64 with the same in_features, outliers and threshold, run on the first one's context; x: floats [..., K];
    outs: a list of arrays as Linear.__call__ takes, or None. Returns a list of [..., N_i], bit for bit what
    calls one by one give.
    """
    if not 1 <= len(linears) <= 64 or outs is not None and len(outs) != len(linears):
        raise ValueError(
            f"{len(linears)} linears, {'no' if outs is None else len(outs)} outs; expected 1 to 64, as many of both"
        )
    first = linears[0]
    for i, linear in enumerate(linears):
        if _kind(linear) != _kind(first):
            raise ValueError(f"linears[{i}] has {_kind(linear)}; expected those of linears[0], {_kind(first)}")
    x = arrays.as_array(x, "x")
    x_matrix = matrix(fold(x, "x", first.in_features), "x")
    ys = [
        _result(out, x.shape[:-1] + (linear.out_features,), x.dtype, False, f"outs[{i}]")
        for i, (linear, out) in enumerate(zip(linears, [None] * len(linears) if outs is None else outs))
    ]
    y_matrices = [matrix(_rows(y, f"outs[{i}]"), f"outs[{i}]", writable=True) for i, y in enumerate(ys)]
    handles = (ctypes.POINTER(_abi.int8q_linear) * len(linears))(*(linear._handle for linear in linears))
    pointers = (ctypes.POINTER(_abi.int8q_matrix) * len(linears))(*map(ctypes.pointer, y_matrices))
    worker = first.context._take()
    try:
        size = max(worker.query_workspace(handle, _abi.INT8Q_FORWARD, x_matrix.rows) for handle in handles)
        worker.reserve(size)
        check(
            library().int8q_forward_many(
                worker.handle, handles, len(linears), x_matrix, 0, pointers, worker.workspace, worker.workspace_bytes
            )
        )
    finally:
        first.context._free.append(worker)
    return ys if outs is None else outs
