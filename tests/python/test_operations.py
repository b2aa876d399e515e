# SPDX-License-Identifier: Apache-2.0
"""The stateless operations against the oracle: integers bit for bit, floats within their bounds."""

import numpy as np
import oracle
import pytest
from oracle import assert_within, bits

import int8q

SHAPES = [(0, 0), (0, 5), (3, 0), (1, 1), (1, 257), (2, 63), (17, 64), (33, 130)]


@pytest.mark.parametrize("shape", SHAPES)
def test_quantize_rows(shape, dtype, outliers, activations):
    x = activations(*shape, dtype)
    result = int8q.quantize_rows(x, 6.0, outliers)
    for found, expected in zip(result, oracle.quantize_rows(x, 6.0, outliers)):
        np.testing.assert_array_equal(found, expected)
    assert [a.dtype.name for a in result] == ["int8", "float32", "int64"]


def test_quantize_rows_of_the_design():
    x = np.array([[7, 1, 0.5], [5, 1, 0.5]], np.float32)
    assert int8q.quantize_rows(x, threshold=4.0).row_stats.tolist() == [1, 1]
    assert int8q.quantize_rows(x).row_stats.tolist() == [1, 5]
    assert int8q.quantize_rows(x).outlier_cols.tolist() == [0]
    assert int8q.quantize_rows(x, outliers="off").outlier_cols.tolist() == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, 2.0**-130, 6.0, 5.999])
def test_quantize_rows_of_special_values(value, outliers):
    x = np.full((3, 9), 0.5, np.float32)
    x[1, 4] = value
    x[2] = 0 if value == 0 else value
    for found, expected in zip(int8q.quantize_rows(x, 6.0, outliers), oracle.quantize_rows(x, 6.0, outliers)):
        np.testing.assert_array_equal(found, expected)


def test_dequantize_rows(dtype, rng):
    q, stats = rng.integers(-128, 128, (5, 33), np.int8), rng.random(5, np.float32)
    y = int8q.dequantize_rows(q, stats, dtype)
    assert y.dtype == dtype
    reference = q * stats.astype(np.float64)[:, np.newaxis] / 127
    assert_within(y, reference, 3 * oracle.U32 * np.abs(reference))


@pytest.mark.parametrize(
    "m, n, k", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1), (1, 33, 257), (65, 17, 64), (7, 129, 1000)]
)
def test_multiply(m, n, k, rng):
    a, b = rng.integers(-128, 128, (m, k), np.int8), rng.integers(-128, 128, (n, k), np.int8)
    c = int8q.multiply(a, b)
    assert c.dtype == np.int32
    np.testing.assert_array_equal(c, oracle.multiply(a, b))


def test_multiply_at_the_limit_of_k():
    a = np.full((1, 133144), 127, np.int8)
    assert int8q.multiply(a, a)[0, 0] == 127 * 127 * 133144
    with pytest.raises(int8q.StatusValueError, match="133145") as caught:
        int8q.multiply(np.ones((1, 133145), np.int8), np.ones((1, 133145), np.int8))
    assert caught.value.name == "INT8Q_SIZE_OVERFLOW" and str(caught.value).startswith("a.shape[1] is 133145; ")


@pytest.mark.parametrize("with_bias", [False, True])
def test_scaled_products(with_bias, dtype, rng):
    m, n, k = 9, 21, 100
    a, b = rng.integers(-127, 128, (m, k), np.int8), rng.integers(-127, 128, (n, k), np.int8)
    row_stats, col_stats = rng.random(m, np.float32), rng.random(n, np.float32)
    bias = rng.standard_normal(n).astype(dtype) if with_bias else None
    acc = int8q.multiply(a, b)
    y = int8q.scaled_multiply(a, row_stats, b, col_stats, bias, dtype)
    assert_within(y, *oracle.scaled(acc, row_stats, col_stats, bias))
    assert bits(y) == bits(int8q.dequantize_accumulators(acc, row_stats, col_stats, bias, dtype))


def test_mixed_product_and_matmul(dtype, outliers, activations, rng):
    x, bias = activations(9, 70, dtype), rng.standard_normal(21).astype(np.float32)
    weight, col_stats, _ = int8q.quantize_rows(rng.standard_normal((21, 70), np.float32), outliers="off")
    a, row_stats, cols = int8q.quantize_rows(x, 6.0, outliers)
    y = int8q.matmul(x, weight, col_stats, bias, outliers=outliers)
    assert y.dtype == dtype
    assert_within(y, *oracle.linear(x, weight, col_stats, bias, 6.0, outliers))
    if outliers != "off":
        mixed = int8q.mixed_scaled_multiply(x, a, row_stats, weight, col_stats, cols, bias, outliers=outliers)
        assert bits(y) == bits(mixed)
    assert bits(y) == bits(int8q.Linear(weight, bias, col_stats=col_stats, outliers=outliers)(x))
    assert int8q.matmul(x, weight, col_stats, dtype=np.float32).dtype == np.float32


def test_calibration(activations):
    batches = [activations(8, 40), activations(3, 40)]
    counts = None
    for x in batches:
        counts = int8q.count_outliers(x, 6.0, counts)
    expected = sum((np.abs(x) >= 6).sum(axis=0) for x in batches)
    np.testing.assert_array_equal(counts, expected)
    cols = int8q.select_outlier_cols(counts, 11, 0.5)
    assert cols.tolist() == np.flatnonzero(expected >= 5.5).tolist()
    assert 2 in int8q.select_outlier_cols(counts, 11, 0.0) and 2 not in cols


def mixed(x=None, cols=(), outliers="column"):
    return int8q.mixed_scaled_multiply(FLOAT if x is None else x, CODES, STATS, CODES, STATS, cols, outliers=outliers)


def test_no_outlier_columns():
    assert bits(mixed()) == bits(mixed(cols=[])) == bits(int8q.scaled_multiply(CODES, STATS, CODES, STATS))


FLOAT, CODES, STATS = np.ones((2, 3), np.float32), np.ones((2, 3), np.int8), np.ones(2, np.float32)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: int8q.quantize_rows(FLOAT.astype(np.float64)),
            TypeError,
            "x is float64; expected float32 or float16 or bfl",
        ),
        (lambda: int8q.quantize_rows(FLOAT.astype(">f4")), TypeError, "x is >f4"),
        (lambda: int8q.quantize_rows(FLOAT[0]), ValueError, r"x has shape \(3,\); expected two dimensions"),
        (lambda: int8q.quantize_rows(FLOAT, 0.0), ValueError, "threshold is 0.0; expected a number > 0"),
        (lambda: int8q.quantize_rows(FLOAT, float("nan")), ValueError, "threshold is nan"),
        (lambda: int8q.quantize_rows(FLOAT, outliers="row"), ValueError, "outliers is 'row'; expected one of 'column'"),
        (lambda: int8q.count_outliers(FLOAT, -1.0), ValueError, "threshold is -1.0"),
        (lambda: int8q.quantize_rows(FLOAT, "6"), TypeError, "^threshold is '6'; expected a number > 0"),
        (lambda: int8q.quantize_rows(FLOAT, None), TypeError, "^threshold is None; expected a number > 0"),
        (lambda: int8q.quantize_rows(FLOAT, "6", "off"), TypeError, "^threshold is '6'; expected a number > 0"),
        (lambda: int8q.quantize_rows(FLOAT, 10**400), ValueError, "^threshold is larger than a float"),
        (lambda: int8q.quantize_rows(FLOAT, 1e-50), ValueError, "^threshold is 1e-50; expected a number > 0"),
        (lambda: int8q.quantize_rows(FLOAT, outliers=["column"]), ValueError, r"^outliers is \['column'\]; expected one"),
        (
            lambda: int8q.count_outliers(FLOAT, counts=np.zeros(6, np.int64)[::2]),
            ValueError,
            r"^counts has strides \(16,\) and address 0x\w+; expected elements side by side",
        ),
        (
            lambda: int8q.count_outliers(FLOAT, counts=np.zeros(25, np.uint8)[1:].view(np.int64)),
            ValueError,
            r"^counts has strides \(8,\) and address 0x\w+; expected .* at a multiple of 8",
        ),
        (
            lambda: int8q.count_outliers(FLOAT, counts=np.frombuffer(bytes(24), np.int64)),
            ValueError,
            "^counts is read-only; expected a writable array$",
        ),
        (lambda: int8q.count_outliers(FLOAT, counts=np.zeros(3, np.int32)), TypeError, "counts is int32; expected int64"),
        (lambda: int8q.select_outlier_cols(np.zeros(3, np.int64), 0), ValueError, "rows is 0"),
        (lambda: int8q.select_outlier_cols(np.zeros(3, np.int64), 1.5), TypeError, "^rows is 1.5; expected an int"),
        (
            lambda: int8q.select_outlier_cols(np.zeros(3, np.int64), 9, "half"),
            TypeError,
            "^min_fraction is 'half'; expected 0 to 1",
        ),
        (
            lambda: int8q.dequantize_rows(CODES, np.ones(3, np.float32)),
            ValueError,
            r"stats has shape \(3,\); expected \(2,\)",
        ),
        (lambda: int8q.dequantize_rows(CODES, STATS.astype(np.float16)), TypeError, "stats is float16; expected float32"),
        (lambda: int8q.dequantize_rows(CODES, STATS, np.float64), TypeError, "dtype is float64"),
        (lambda: int8q.dequantize_rows(CODES, STATS, "half a"), TypeError, "^dtype is 'half a'; expected float32 or fl"),
        (lambda: int8q.dequantize_rows(FLOAT, STATS), TypeError, "q is float32; expected int8"),
        (lambda: int8q.multiply(CODES, CODES[:, :2]), ValueError, r"^b\.shape\[1\] is 2; expected 3, to match"),
        (lambda: int8q.multiply(CODES, FLOAT), TypeError, "b is float32; expected int8"),
        (
            lambda: int8q.scaled_multiply(CODES, STATS, CODES, STATS, np.ones(3, np.float32)),
            ValueError,
            r"^bias has shape \(3,\); expected \(2,\)$",
        ),
        (lambda: int8q.scaled_multiply(CODES, STATS, CODES, STATS, np.ones((1, 2))), ValueError, "bias has shape"),
        (lambda: int8q.matmul(FLOAT, CODES, STATS[:1]), ValueError, r"col_stats has shape \(1,\); expected \(2,\)"),
        (lambda: int8q.matmul(FLOAT, FLOAT, STATS), TypeError, "^weight is float32; expected int8$"),
        (lambda: int8q.matmul(FLOAT, CODES[:, :2], STATS), ValueError, r"^weight has shape \(2, 2\); expected \(N, 3\)"),
        (lambda: mixed(outliers="off"), ValueError, "^outliers is 'off'; expected 'column', 'element' or 'all'"),
        (lambda: mixed(FLOAT[:1]), ValueError, r"^x\.shape\[0\] is 1; expected 2, to match"),
        (lambda: mixed(cols=[0, 1, 2, 2]), ValueError, r"^outlier_cols has shape \(4,\); expected .* at most 3"),
        (lambda: mixed(cols=[[1]]), ValueError, r"^outlier_cols has shape \(1, 1\); expected one dimension"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
