# SPDX-License-Identifier: Apache-2.0
"""LLM.int8() in NumPy: quantization in the library's own fp32 expressions, bit for bit; products in integers and float64,
with the bounds of docs/numerics.md."""

import numpy as np

U32 = 2.0**-24  # unit roundoff of fp32
F32_TINY = 2.0**-149  # smallest denormal


def unit_roundoff(dtype):
    return {"float32": U32, "float16": 2.0**-11, "bfloat16": 2.0**-8}[np.dtype(dtype).name]


def smallest(dtype):
    return {"float32": F32_TINY, "float16": 2.0**-24, "bfloat16": 2.0**-133}[np.dtype(dtype).name]


def quantize_rows(x, threshold=6.0, outliers="column"):
    """(q, row_stats, outlier_cols)."""
    x = x.astype(np.float32)
    threshold = F32_TINY if outliers == "all" else threshold
    with np.errstate(all="ignore"):
        outlier = np.zeros(x.shape, bool) if outliers == "off" else np.abs(x) >= np.float32(threshold)
        absmax = np.where(outlier, 0, np.abs(x)).max(axis=1, initial=0)
        absmax = np.where(np.isnan(x).any(axis=1) | np.isinf(absmax), np.float32(np.nan), absmax)
        row = absmax[:, np.newaxis]
        scaled = np.where(row < 2.0**-120, (x / row) * np.float32(127), x * (np.float32(127) * (np.float32(1) / row)))
        cols = np.flatnonzero(outlier.any(axis=0))
        zero = outlier | (row == 0) | np.isnan(row)
        if outliers in ("column", "all"):
            zero[:, cols] = True
        return np.where(zero, 0, np.rint(scaled)).astype(np.int8), absmax, cols


def multiply(a, b):
    return (a.astype(np.int64) @ b.astype(np.int64).T).astype(np.int32)


def scaled(acc, row_stats, col_stats, bias, outlier_part=0.0, outlier_size=0.0, count=0):
    """(Y in float64, the bound of fp32's error): acc, the two stats, 1/16129 and their products round, as do the count
    steps of the outlier part, its weights (3), the sum and the bias."""
    product = acc.astype(np.float64) * row_stats.astype(np.float64)[:, np.newaxis] * col_stats.astype(np.float64) / 16129
    offset = np.zeros(acc.shape[1]) if bias is None else bias.astype(np.float64)
    size = np.abs(product) + outlier_size + np.abs(offset)
    return product + outlier_part + offset, (count + 9) * U32 * size + (count + 4) * F32_TINY


def linear(x, q, col_stats, bias, threshold=6.0, outliers="column", kept=None):
    """(Y in float64, the bound). kept: {column: its fp16 weights [N]}."""
    a, row_stats, cols = quantize_rows(x, threshold, outliers)
    weights = q[:, cols].astype(np.float64) * col_stats.astype(np.float64)[:, np.newaxis] / 127
    for i, col in enumerate(cols):
        if kept and col in kept:
            weights[:, i] = kept[col].astype(np.float64)
    part = x[:, cols].astype(np.float64)
    if outliers == "element":
        part = np.where(np.abs(part) >= threshold, part, 0)
    sizes = np.abs(part) @ np.abs(weights).T
    return scaled(multiply(a, q), row_stats, col_stats, bias, part @ weights.T, sizes, len(cols))


def backward(dy, q, col_stats):
    """(dX in float64, the bound): gamma of N + 3 in fp32; bf16 dY may round g to bf16, and flushes denormals there."""
    g = dy.astype(np.float64) * col_stats.astype(np.float64) / 127
    size = np.abs(g) @ np.abs(q.astype(np.float64))
    n = dy.shape[1]
    gamma = (n + 3) * U32 / (1 - (n + 3) * U32)
    if np.dtype(dy.dtype).name == "bfloat16":
        gamma = (1 + 2.0**-8) * (1 + gamma) - 1
    return g @ q.astype(np.float64), gamma * size + n * 129 * 2.0**-126


def assert_within(y, reference, bound):
    """y is the reference, but for the bound and one rounding to y's dtype."""
    assert y.shape == reference.shape
    allowed = bound + unit_roundoff(y.dtype) * (np.abs(reference) + bound) + smallest(y.dtype)
    excess = np.abs(y.astype(np.float64) - reference) / allowed
    assert excess.size == 0 or excess.max() <= 1, f"error is {excess.max():g} of what is allowed, at {excess.argmax()}"


def bits(array):
    """For comparison bit for bit, NaN included."""
    return array.tobytes(), array.shape, array.dtype
