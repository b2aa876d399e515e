# SPDX-License-Identifier: Apache-2.0
"""The stateless operations: bitsandbytes' shape, nothing kept from call to call.

Notation: X[M,K] activations, W[N,K] weights, Y[M,N]. row_stats[M] and col_stats[N] are absmax in input units (bitsandbytes'
SCA and SCB): a code q stands for q * stat / 127. Floats are float32, float16 or int8q.bfloat16. Arrays are NumPy's, or of
any library that exports DLPack in host memory; results are new NumPy arrays. Any thread may call any function. Each takes
the Context to run on by the keyword context (None: the process' own). The GIL is released while it computes.

Where the first array is a torch tensor on a CUDA device, all must be, and so are results: new tensors of torch's allocator,
with the same shapes and dtypes. dtype may be torch's; context is None. Work is put on torch's current stream of the device,
and no call waits for it but quantize_rows. Integers and what is quantized are the CPU's bits, floats are within the bounds
of docs/cuda.md. What memory there holds is not looked at: products with K > 131071 are a ValueError whatever a and b are,
and numbers in outlier_cols that name no column are passed over. Capture no operation in a CUDA graph: the memory that it
works in is int8q's, and a later call with larger arrays frees it.

Wrong dtypes are a TypeError, wrong shapes and values a ValueError; both name the argument, its value and what was expected.
"""

import ctypes
import operator
import sys
from typing import NamedTuple

import numpy as np

from . import _abi, arrays
from ._abi import library
from .arrays import DTYPE_OF, HOST, S8, S32, vector
from .context import check, default_context

OUTLIER_MODES = {
    "column": _abi.INT8Q_OUTLIERS_COLUMN,
    "element": _abi.INT8Q_OUTLIERS_ELEMENT,
    "off": _abi.INT8Q_OUTLIERS_OFF,
    "all": _abi.INT8Q_OUTLIERS_ALL,
}


def outlier_mode(outliers, threshold):
    """The ABI's number of a mode's name. Refuses threshold 0, which is "off" in bitsandbytes and 6 in C."""
    if not isinstance(outliers, str) or outliers not in OUTLIER_MODES:
        raise ValueError(f"outliers is {outliers!r}; expected one of {', '.join(map(repr, OUTLIER_MODES))}")
    expected = "a number > 0 (outliers='off' turns the decomposition off)"
    # What rounds to 0 in float32 is 0 in C.
    if not ctypes.c_float(arrays.number(threshold, "threshold", expected)).value > 0 and outliers not in ("off", "all"):
        raise ValueError(f"threshold is {threshold}; expected {expected}")
    return OUTLIER_MODES[outliers]


def _place(first, context):
    """(where an operation runs whose first array this is, the call(function, *arguments) of there)"""
    if isinstance(first, getattr(sys.modules.get("torch"), "Tensor", ())) and first.is_cuda:
        from ._tensors import Gpu

        gpu = Gpu(first, context)
        return gpu, gpu.call
    return HOST, (context or default_context()).call


class QuantizedRows(NamedTuple):
    """q int8 [M,K]; row_stats float32 [M]; outlier_cols int64 [number of columns that hold an outlier], ascending."""

    q: np.ndarray
    row_stats: np.ndarray
    outlier_cols: np.ndarray


def quantize_rows(x, threshold=6.0, outliers="column", *, context=None):
    """Quantizes each row on its own: row_stats[i] = max |x[i,:]|, q = rint(x * 127 / row_stats).

    x: floats [M,K]
    threshold: elements with |x| >= threshold are outliers, left out of row_stats; > 0, inf allowed
    outliers: "column": q is 0 in every column that holds an outlier; "element": q is 0 at the outliers alone; "off": none;
        "all": whatever threshold is, all are but 0 and NaN, so that q and row_stats are 0

    Returns QuantizedRows. A row with NaN gets the stat NaN and zeros, alone. A row of zeros gets the stat 0. On a CUDA
    device the call waits, to learn how many outlier columns there are.
    Source: LLM.int8() (arXiv 2208.07339) section 3.1; bitsandbytes' int8_vectorwise_quant.
    """
    mode = outlier_mode(outliers, threshold)
    at, call = _place(x, context)
    x = at.matrix(x, "x")
    cols = at.empty((x.cols,), np.int64)
    q, row_stats, count = _quantize_rows(at, call, x, mode, threshold, cols)
    return QuantizedRows(q, row_stats, at.copy(cols[: count.item()]))


def _quantize_rows(at, call, x, mode, threshold, cols):
    """(q, row_stats, count) of a matrix; cols [K] receives the outlier columns, count [1] how many there are."""
    q, row_stats = at.empty((x.rows, x.cols), np.int8), at.empty((x.rows,), np.float32)
    count = at.empty((1,), np.int64)
    call(
        library().int8q_quantize_rows,
        x,
        mode,
        threshold,
        at.matrix(q, "q", S8),
        at.vector(row_stats, "row_stats", np.float32, x.rows),
        None,
        at.vector(cols, "outlier_cols", np.int64, x.cols),
        at.vector(count, "outlier_count", np.int64, 1),
    )
    return q, row_stats, count


def dequantize_rows(q, stats, dtype=np.float32, *, context=None):
    """y[i,j] = q[i,j] * stats[i] / 127, rounded once to dtype.

    q: int8 [M,K]; stats: float32 [M]; dtype: float32, float16 or bfloat16. Returns [M,K] of dtype.
    Source: bitsandbytes' int8_vectorwise_dequant.
    """
    at, call = _place(q, context)
    q = at.matrix(q, "q", S8)
    y = at.empty((q.rows, q.cols), at.float_dtype(dtype))
    stats = at.vector(stats, "stats", np.float32, q.rows)
    call(library().int8q_dequantize_rows, q, stats, at.matrix(y, "y"))
    return y


def multiply(a, b, *, context=None):
    """C = A . B^T in 32-bit integers, exact.

    a: int8 [M,K]; b: int8 [N,K]. Returns int32 [M,N]; zeros for K = 0. K > 133144, or > 131071 where a or b holds -128,
    could overflow and is a ValueError. Source: bitsandbytes' int8_linear_matmul.
    """
    at, call = _place(a, context)
    a, b = at.matrix(a, "a", S8), at.matrix(b, "b", S8)
    c = at.empty((a.rows, b.rows), np.int32)
    call(library().int8q_multiply, a, b, at.matrix(c, "c", S32))
    return c


def dequantize_accumulators(acc, row_stats, col_stats, bias=None, dtype=np.float32, *, context=None):
    """Y = acc * row_stats * col_stats / 127^2 + bias, rounded once to dtype.

    acc: int32 [M,N]; row_stats: float32 [M]; col_stats: float32 [N]; bias: floats [N] or None. Returns [M,N] of dtype.
    Source: bitsandbytes' int8_mm_dequant.
    """
    at, call = _place(acc, context)
    acc = at.matrix(acc, "acc", S32)
    y = at.empty((acc.rows, acc.cols), at.float_dtype(dtype))
    call(
        library().int8q_dequantize_accumulators,
        acc,
        at.vector(row_stats, "row_stats", np.float32, acc.rows),
        at.vector(col_stats, "col_stats", np.float32, acc.cols),
        at.bias_matrix(bias, acc.cols),
        at.matrix(y, "y"),
    )
    return y


def scaled_multiply(a, row_stats, b, col_stats, bias=None, dtype=np.float32, *, context=None):
    """multiply and dequantize_accumulators in one: Y = (A . B^T) * row_stats * col_stats / 127^2 + bias.

    a: int8 [M,K]; row_stats: float32 [M]; b: int8 [N,K]; col_stats: float32 [N]; bias: floats [N] or None. Returns [M,N] of
    dtype. Source: bitsandbytes' int8_scaled_mm.
    """
    at, call = _place(a, context)
    a, b = at.matrix(a, "a", S8), at.matrix(b, "b", S8)
    y = at.empty((a.rows, b.rows), at.float_dtype(dtype))
    call(
        library().int8q_scaled_multiply,
        a,
        at.vector(row_stats, "row_stats", np.float32, a.rows),
        b,
        at.vector(col_stats, "col_stats", np.float32, b.rows),
        at.bias_matrix(bias, b.rows),
        at.matrix(y, "y"),
    )
    return y


def mixed_scaled_multiply(
    x, a, row_stats, b, col_stats, outlier_cols, bias=None, dtype=None, *, threshold=6.0, outliers="column", context=None
):
    """scaled_multiply plus the outlier columns in floating point.

    Y = (A . B^T) * row_stats * col_stats / 127^2 + sum over outlier_cols k of x[:,k] * (b[:,k] * col_stats / 127) + bias

    x: floats [M,K]; a, row_stats, outlier_cols: what quantize_rows(x, threshold, outliers) gives; b: int8 [N,K]; col_stats:
    float32 [N]; outlier_cols: int64, ascending; bias: floats [N] or None; dtype: None for x's; outliers: "column", "all"
    or "element", where only the elements with |x| >= threshold enter the sum. Returns [M,N] of dtype.
    Source: LLM.int8() section 3.2; bitsandbytes' int8_mixed_scaled_mm.
    """
    mode = outlier_mode(outliers, threshold)
    if outliers == "off":
        raise ValueError("outliers is 'off'; expected 'column', 'element' or 'all' (scaled_multiply has none)")
    at, call = _place(x, context)
    x, a, b = at.matrix(x, "x"), at.matrix(a, "a", S8), at.matrix(b, "b", S8)
    y = at.empty((a.rows, b.rows), DTYPE_OF[x.dtype] if dtype is None else at.float_dtype(dtype))
    cols = at.col_numbers(outlier_cols, "outlier_cols", a.cols)
    call(
        library().int8q_mixed_scaled_multiply,
        x,
        a,
        at.vector(row_stats, "row_stats", np.float32, a.rows),
        b,
        at.vector(col_stats, "col_stats", np.float32, b.rows),
        mode,
        threshold,
        cols,
        len(cols.array),
        at.bias_matrix(bias, b.rows),
        at.matrix(y, "y"),
    )
    return y


def matmul(x, weight, col_stats, bias=None, dtype=None, *, threshold=6.0, outliers="column", context=None):
    """Y = X . W^T + bias by LLM.int8() with weights that are not packed: quantize_rows, then mixed_scaled_multiply.

    x: floats [M,K]; weight: int8 [N,K]; col_stats: float32 [N] (bitsandbytes' CB and SCB); bias: floats [N] or None; dtype:
    None for x's. Returns [M,N] of dtype. A layer that is used again is faster as a Linear, which gives the same bits.
    Source: bitsandbytes' matmul.
    """
    mode = outlier_mode(outliers, threshold)
    at, call = _place(x, context)
    x, weight = at.matrix(x, "x"), at.matrix(weight, "weight", S8)
    if weight.cols != x.cols:
        raise ValueError(f"weight has shape {(weight.rows, weight.cols)}; expected (N, {x.cols}), to match x")
    cols = at.empty((x.cols,), np.int64)
    cols[:] = -1  # which names no column: a GPU takes all of them, so that nobody waits to learn how many are outliers
    a, row_stats, count = _quantize_rows(at, call, x, mode, threshold, cols)
    dtype = DTYPE_OF[x.dtype] if dtype is None else dtype
    if outliers == "off":
        return scaled_multiply(a, row_stats, weight.array, col_stats, bias, dtype, context=context)
    if at is HOST:
        cols = cols[: count.item()]
    options = {"threshold": threshold, "outliers": outliers, "context": context}
    return mixed_scaled_multiply(x.array, a, row_stats, weight.array, col_stats, cols, bias, dtype, **options)


def count_outliers(x, threshold=6.0, counts=None, *, context=None):
    """Calibration, step 1: adds to counts[k] the number of rows of x in which |x[i,k]| >= threshold.

    x: floats [M,K]; counts: int64 [K], NumPy's or exported by DLPack, or a tensor beside x on a CUDA device; writable,
    contiguous and aligned, changed in place; None: zeros. Returns counts.
    """
    outlier_mode("column", threshold)
    at, call = _place(x, context)
    x = at.matrix(x, "x")
    if counts is None:
        counts = at.empty((x.cols,), np.int64)
        counts[:] = 0
    call(library().int8q_count_outliers, x, threshold, at.vector(counts, "counts", np.int64, x.cols, writable=True))
    return counts


def select_outlier_cols(counts, rows, min_fraction=0.06):
    """Calibration, step 2: the columns to keep in fp16 (Linear's kept_cols): those with an outlier in at least min_fraction
    of the rows, and in at least one.

    counts: int64 [K] of count_outliers, on the host; rows: how many rows were counted in all, > 0; min_fraction: 0 to 1,
    the paper's .06. Returns int64, ascending. Source: LLM.int8() section 3.2.
    """
    counts = arrays.as_array(counts, "counts")
    try:
        rows = operator.index(rows)
    except TypeError:
        raise TypeError(f"rows is {rows!r}; expected an int, how many rows were counted") from None
    cols, count = np.empty(counts.size, np.int64), ctypes.c_int64()
    status = library().int8q_select_outlier_cols(
        vector(counts, "counts", np.int64, counts.size),
        counts.size,
        rows,
        arrays.number(min_fraction, "min_fraction", "0 to 1"),
        vector(cols, "outlier_cols", np.int64, cols.size),
        count,
    )
    check(status)
    return cols[: count.value].copy()
