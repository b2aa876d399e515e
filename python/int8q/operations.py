# SPDX-License-Identifier: Apache-2.0
"""The stateless operations: bitsandbytes' shape, nothing kept from call to call.

Notation: X[M,K] activations, W[N,K] weights, Y[M,N]. row_stats[M] and col_stats[N] are absmax in input units (bitsandbytes'
SCA and SCB): a code q stands for q * stat / 127. Floats are float32, float16 or int8q.bfloat16. Arrays are NumPy's, or of
any library that exports DLPack in host memory; results are new NumPy arrays. Any thread may call any function. Each takes
the Context to run on by the keyword context (None: the process' own). The GIL is released while it computes.

Wrong dtypes are a TypeError, wrong shapes and values a ValueError; both name the argument, its value and what was expected.
"""

import ctypes
import operator
from typing import NamedTuple

import numpy as np

from . import _abi, arrays
from ._abi import library
from .arrays import S8, S32, matrix, vector
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

    Returns QuantizedRows. A row with NaN gets the stat NaN and zeros, alone. A row of zeros gets the stat 0.
    Source: LLM.int8() (arXiv 2208.07339) section 3.1; bitsandbytes' int8_vectorwise_quant.
    """
    mode = outlier_mode(outliers, threshold)
    x = matrix(x, "x")
    q, row_stats = np.empty((x.rows, x.cols), np.int8), np.empty(x.rows, np.float32)
    cols, count = np.empty(x.cols, np.int64), ctypes.c_int64()
    (context or default_context()).call(
        library().int8q_quantize_rows,
        x,
        mode,
        threshold,
        matrix(q, "q", S8),
        vector(row_stats, "row_stats", np.float32, x.rows),
        None,
        vector(cols, "outlier_cols", np.int64, x.cols),
        count,
    )
    return QuantizedRows(q, row_stats, cols[: count.value].copy())


def dequantize_rows(q, stats, dtype=np.float32, *, context=None):
    """y[i,j] = q[i,j] * stats[i] / 127, rounded once to dtype.

    q: int8 [M,K]; stats: float32 [M]; dtype: float32, float16 or bfloat16. Returns [M,K] of dtype.
    Source: bitsandbytes' int8_vectorwise_dequant.
    """
    q = matrix(q, "q", S8)
    y = np.empty((q.rows, q.cols), arrays.float_dtype(dtype))
    stats = vector(stats, "stats", np.float32, q.rows)
    (context or default_context()).call(library().int8q_dequantize_rows, q, stats, matrix(y, "y"))
    return y


def multiply(a, b, *, context=None):
    """C = A . B^T in 32-bit integers, exact.

    a: int8 [M,K]; b: int8 [N,K]. Returns int32 [M,N]; zeros for K = 0. K > 133144, or > 131071 where a or b holds -128,
    could overflow and is a ValueError. Source: bitsandbytes' int8_linear_matmul.
    """
    a, b = matrix(a, "a", S8), matrix(b, "b", S8)
    c = np.empty((a.rows, b.rows), np.int32)
    (context or default_context()).call(library().int8q_multiply, a, b, matrix(c, "c", S32))
    return c


def dequantize_accumulators(acc, row_stats, col_stats, bias=None, dtype=np.float32, *, context=None):
    """Y = acc * row_stats * col_stats / 127^2 + bias, rounded once to dtype.

    acc: int32 [M,N]; row_stats: float32 [M]; col_stats: float32 [N]; bias: floats [N] or None. Returns [M,N] of dtype.
    Source: bitsandbytes' int8_mm_dequant.
    """
    acc = matrix(acc, "acc", S32)
    y = np.empty((acc.rows, acc.cols), arrays.float_dtype(dtype))
    (context or default_context()).call(
        library().int8q_dequantize_accumulators,
        acc,
        vector(row_stats, "row_stats", np.float32, acc.rows),
        vector(col_stats, "col_stats", np.float32, acc.cols),
        arrays.bias_matrix(bias, acc.cols),
        matrix(y, "y"),
    )
    return y


def scaled_multiply(a, row_stats, b, col_stats, bias=None, dtype=np.float32, *, context=None):
    """multiply and dequantize_accumulators in one: Y = (A . B^T) * row_stats * col_stats / 127^2 + bias.

    a: int8 [M,K]; row_stats: float32 [M]; b: int8 [N,K]; col_stats: float32 [N]; bias: floats [N] or None. Returns [M,N] of
    dtype. Source: bitsandbytes' int8_scaled_mm.
    """
    a, b = matrix(a, "a", S8), matrix(b, "b", S8)
    y = np.empty((a.rows, b.rows), arrays.float_dtype(dtype))
    (context or default_context()).call(
        library().int8q_scaled_multiply,
        a,
        vector(row_stats, "row_stats", np.float32, a.rows),
        b,
        vector(col_stats, "col_stats", np.float32, b.rows),
        arrays.bias_matrix(bias, b.rows),
        matrix(y, "y"),
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
    x, a, b = matrix(x, "x"), matrix(a, "a", S8), matrix(b, "b", S8)
    y = np.empty((a.rows, b.rows), x.array.dtype if dtype is None else arrays.float_dtype(dtype))
    cols = arrays.col_numbers(outlier_cols, "outlier_cols", a.cols)
    (context or default_context()).call(
        library().int8q_mixed_scaled_multiply,
        x,
        a,
        vector(row_stats, "row_stats", np.float32, a.rows),
        b,
        vector(col_stats, "col_stats", np.float32, b.rows),
        mode,
        threshold,
        cols,
        cols.array.size,
        arrays.bias_matrix(bias, b.rows),
        matrix(y, "y"),
    )
    return y


def matmul(x, weight, col_stats, bias=None, dtype=None, *, threshold=6.0, outliers="column", context=None):
    """Y = X . W^T + bias by LLM.int8() with weights that are not packed: quantize_rows, then mixed_scaled_multiply.

    x: floats [M,K]; weight: int8 [N,K]; col_stats: float32 [N] (bitsandbytes' CB and SCB); bias: floats [N] or None; dtype:
    None for x's. Returns [M,N] of dtype. A layer that is used again is faster as a Linear, which gives the same bits.
    Source: bitsandbytes' matmul.
    """
    x, weight = arrays.as_array(x, "x"), matrix(weight, "weight", S8).array
    a, row_stats, cols = quantize_rows(x, threshold, outliers, context=context)
    if a.shape[1] != weight.shape[1]:
        raise ValueError(f"weight has shape {weight.shape}; expected (N, {a.shape[1]}), to match x")
    if outliers == "off":
        return scaled_multiply(a, row_stats, weight, col_stats, bias, x.dtype if dtype is None else dtype, context=context)
    return mixed_scaled_multiply(
        x, a, row_stats, weight, col_stats, cols, bias, dtype, threshold=threshold, outliers=outliers, context=context
    )


def count_outliers(x, threshold=6.0, counts=None, *, context=None):
    """Calibration, step 1: adds to counts[k] the number of rows of x in which |x[i,k]| >= threshold.

    x: floats [M,K]; counts: int64 [K], NumPy's or exported by DLPack, writable, contiguous and aligned, changed in place;
    None: zeros. Returns counts.
    """
    outlier_mode("column", threshold)
    x = matrix(x, "x")
    counts = np.zeros(x.cols, np.int64) if counts is None else counts
    array = arrays.as_array(counts, "counts", writable=True)
    pointer = vector(array, "counts", np.int64, x.cols)
    if not array.flags.writeable:
        raise ValueError("counts is read-only; expected a writable array")
    if not (array.flags.c_contiguous and array.flags.aligned):
        at = f"strides {array.strides} and address {array.ctypes.data:#x}"
        raise ValueError(f"counts has {at}; expected elements side by side, at a multiple of {array.itemsize}")
    (context or default_context()).call(library().int8q_count_outliers, x, threshold, pointer)
    return counts


def select_outlier_cols(counts, rows, min_fraction=0.06):
    """Calibration, step 2: the columns to keep in fp16 (Linear's kept_cols): those with an outlier in at least min_fraction
    of the rows, and in at least one.

    counts: int64 [K] of count_outliers; rows: how many rows were counted in all, > 0; min_fraction: 0 ... 1, the paper's
    .06. Returns int64, ascending. Source: LLM.int8() section 3.2.
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
