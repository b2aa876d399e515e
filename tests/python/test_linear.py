# SPDX-License-Identifier: Apache-2.0
"""Linear: forward and backward against the oracle, its contents, and how it is kept and copied."""

import copy
import gc
import mmap
import pickle

import numpy as np
import oracle
import pytest
from oracle import assert_within, bits

import int8q

SHAPES = [(0, 4, 8), (3, 0, 8), (3, 4, 0), (1, 1, 1), (1, 33, 70), (5, 17, 257), (40, 65, 64)]


def make(rng, n, k, bias_dtype=np.float32, **options):
    return int8q.Linear(rng.standard_normal((n, k), np.float32), rng.standard_normal(n).astype(bias_dtype), **options)


@pytest.mark.parametrize("m, n, k", SHAPES)
def test_forward(m, n, k, dtype, outliers, activations, rng):
    layer, x = make(rng, n, k, dtype, outliers=outliers), activations(m, k, dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert_within(y, *oracle.linear(x, layer.weight, layer.col_stats, layer.bias, 6.0, outliers))


@pytest.mark.parametrize("m, n, k", SHAPES)
def test_backward(m, n, k, dtype, activations, rng):
    layer, dy = make(rng, n, k), activations(m, n, dtype)
    dx = layer.backward(dy)
    assert dx.dtype == dtype
    assert_within(dx, *oracle.backward(dy, layer.weight, layer.col_stats))


@pytest.mark.parametrize("method", ["__call__", "backward"])
def test_out_and_accumulate(method, dtype, activations, rng):
    run, x = getattr(make(rng, 24, 24), method), activations(6, 24)
    y = run(x)
    out = np.zeros((6, 24), dtype)
    assert run(x, out=out) is out
    assert bits(out) == bits(y.astype(dtype))
    run(x, out, accumulate=True)
    np.testing.assert_allclose(out.astype(np.float64), 2 * y.astype(np.float64), rtol=4 * oracle.unit_roundoff(dtype))
    with pytest.raises(ValueError, match="out is None"):
        run(x, accumulate=True)


@pytest.mark.parametrize("shape", [(8,), (1, 8), (2, 3, 8), (2, 1, 3, 8), (0, 2, 8)])
def test_leading_dimensions_are_one_batch(shape, rng):
    layer, x = make(rng, 5, 8), 4 * rng.standard_normal(shape, np.float32)
    expected = layer(x.reshape(-1, 8)).reshape(shape[:-1] + (5,))
    assert bits(layer(x)) == bits(expected)
    out = np.empty(shape[:-1] + (5,), np.float32)
    assert bits(layer(x, out)) == bits(expected)
    assert layer.backward(expected).shape == shape


def test_no_features_in_a_batch_of_three_dimensions(rng):
    layer = make(rng, 5, 0)
    np.testing.assert_array_equal(layer(np.empty((2, 3, 0), np.float32)), np.broadcast_to(layer.bias, (2, 3, 5)))


def test_a_row_with_nan_is_alone(activations, rng):
    layer, x = make(rng, 9, 16), activations(4, 16)
    expected = layer(x)
    x[2, 3] = np.nan
    y = layer(x)
    assert np.isnan(y[2]).all()
    assert bits(y[[0, 1, 3]]) == bits(expected[[0, 1, 3]])


def test_element_mode_does_not_depend_on_the_batch(activations, rng):
    layer, x = make(rng, 9, 16, outliers="element"), activations(7, 16)
    assert bits(layer(x)) == bits(np.concatenate([layer(row[np.newaxis]) for row in x]))


def test_int8_weights(activations, rng):
    from_floats = make(rng, 12, 20)
    again = int8q.Linear(from_floats.weight, from_floats.bias, col_stats=from_floats.col_stats)
    assert again.to_bytes() == from_floats.to_bytes()


def test_contents(rng):
    weight, bias = rng.standard_normal((12, 20), np.float32), rng.standard_normal(12).astype(np.float16)
    layer = int8q.Linear(weight, bias, outliers="element", threshold=3.5, kept_cols=[2, 19])
    q, col_stats, _ = oracle.quantize_rows(weight, outliers="off")
    np.testing.assert_array_equal(layer.weight, q)
    np.testing.assert_array_equal(layer.col_stats, col_stats)
    np.testing.assert_array_equal(layer.bias, bias.astype(np.float32))
    assert layer.kept_cols.tolist() == [2, 19]
    np.testing.assert_array_equal(layer.kept_weights, weight[:, [2, 19]].astype(np.float16))
    assert (layer.in_features, layer.out_features, layer.outliers, layer.threshold) == (20, 12, "element", 3.5)
    bare = int8q.Linear(weight)
    assert bare.bias is None and bare.kept_cols.size == 0 and bare.kept_weights.shape == (12, 0)
    assert repr(bare) == "int8q.Linear(in_features=20, out_features=12, bias=False, outliers='column', threshold=6)"


def test_kept_columns(activations, rng):
    weight, x = rng.standard_normal((12, 20), np.float32), activations(6, 20)
    layer = int8q.Linear(weight, kept_cols=np.array([1, 3]))
    kept = {1: layer.kept_weights[:, 0], 3: layer.kept_weights[:, 1]}
    assert_within(layer(x), *oracle.linear(x, layer.weight, layer.col_stats, None, kept=kept))
    again = int8q.Linear(
        layer.weight, col_stats=layer.col_stats, kept_cols=layer.kept_cols, kept_weights=layer.kept_weights
    )
    assert again.to_bytes() == layer.to_bytes()
    assert bits(layer(x)) != bits(int8q.Linear(weight)(x))


def test_forward_many(activations, rng):
    layers, x = [make(rng, n, 20) for n in (3, 40, 0)], activations(6, 20).reshape(2, 3, 20)
    expected = [layer(x) for layer in layers]
    for ys in (int8q.forward_many(layers, x), int8q.forward_many(layers, x, [np.empty_like(y) for y in expected])):
        assert list(map(bits, ys)) == list(map(bits, expected))
    others = [make(rng, n, 20, context=int8q.Context(threads)) for n, threads in ((3, 1), (40, 64))]
    int8q.forward_many(others, x)
    assert [bits(layer(x)) for layer in others] == [bits(y) for y in int8q.forward_many(others, x)]
    with pytest.raises(ValueError, match="65 linears, no outs; expected 1 to 64"):
        int8q.forward_many(layers[:1] * 65, x)
    with pytest.raises(ValueError, match="3 linears, 2 outs"):
        int8q.forward_many(layers, x, [np.empty_like(y) for y in expected[:2]])


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(protocol, activations, rng):
    layer, x = make(rng, 12, 20, outliers="element", kept_cols=np.array([1])), activations(6, 20)
    again = pickle.loads(pickle.dumps(layer, protocol))
    assert again.to_bytes() == layer.to_bytes() and again.outliers == "element"
    assert bits(again(x)) == bits(layer(x))
    assert bits(copy.deepcopy(layer)(x)) == bits(layer(x))


def test_pickle_out_of_band_copies_nothing(rng):
    layer, buffers = make(rng, 12, 20), []
    text = pickle.dumps(layer, 5, buffer_callback=buffers.append)
    again = pickle.loads(text, buffers=buffers)
    assert again.blob.ctypes.data == layer.blob.ctypes.data
    del layer
    gc.collect()
    assert again.weight.shape == (12, 20)


@pytest.mark.parametrize("trust_checksum", [False, True])
def test_a_mapped_file(trust_checksum, activations, rng, tmp_path):
    layer, x = make(rng, 12, 20), activations(6, 20)
    layer.blob.tofile(tmp_path / "layer")
    mapped = np.memmap(tmp_path / "layer", np.uint8, "r")
    again = int8q.Linear.from_bytes(mapped, trust_checksum=trust_checksum)
    assert again.blob.ctypes.data == mapped.ctypes.data
    with open(tmp_path / "layer", "rb") as file:
        third = int8q.Linear.from_bytes(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    del mapped
    gc.collect()
    assert bits(again(x)) == bits(third(x)) == bits(layer(x))


@pytest.mark.parametrize("offset", [0, 1, 63])
def test_bytes_anywhere(offset, activations, rng):
    layer, x = make(rng, 12, 20), activations(6, 20)
    again = int8q.Linear.from_bytes(memoryview(bytes(offset) + layer.to_bytes())[offset:])
    assert bits(again(x)) == bits(layer(x))


def test_a_corrupt_blob(rng):
    blob = bytearray(make(rng, 12, 20).to_bytes())
    with pytest.raises(ValueError) as caught:
        int8q.Linear.from_bytes(blob[:-64])
    assert caught.value.name == "INT8Q_CORRUPT"
    for bytes_less in (b"", bytearray(), np.empty(0, np.uint8), bytes(7)):
        with pytest.raises(int8q.StatusValueError, match=r"^blob: blob_bytes is [07]; expected at least the header's 256"):
            int8q.Linear.from_bytes(bytes_less)
    blob[len(blob) // 2] ^= 1
    with pytest.raises(int8q.StatusValueError, match="checksum"):
        int8q.Linear.from_bytes(blob)


def test_the_blob_outlives_its_linear(rng):
    layer = make(rng, 12, 20)
    blob, copied = layer.blob, layer.to_bytes()
    assert not blob.flags.writeable
    del layer
    gc.collect()
    assert blob.tobytes() == copied


W, X = np.ones((4, 8), np.float32), np.ones((2, 8), np.float32)
CODES, STATS = np.ones((4, 8), np.int8), np.ones(4, np.float32)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: int8q.Linear(CODES), TypeError, "weight is int8; expected float32"),
        (lambda: int8q.Linear(W, col_stats=STATS), TypeError, "weight is float32; expected int8"),
        (lambda: int8q.Linear(CODES, col_stats=STATS[:3]), ValueError, r"col_stats has shape \(3,\); expected \(4,\)"),
        (lambda: int8q.Linear(CODES, col_stats=-STATS), ValueError, "col_stats"),
        (lambda: int8q.Linear(W[0]), ValueError, "weight has shape"),
        (lambda: int8q.Linear(W, np.ones(3, np.float32)), ValueError, r"^bias has shape \(3,\); expected \(4,\)$"),
        (lambda: int8q.Linear(W, STATS * np.inf), ValueError, "bias"),
        (lambda: int8q.Linear(W * np.nan), ValueError, "row 0"),
        (lambda: int8q.Linear(W, threshold=0), ValueError, "threshold is 0; .*outliers='off'"),
        (lambda: int8q.Linear(W, outliers=None), ValueError, "outliers is None"),
        (lambda: int8q.Linear(W, threshold="6"), TypeError, "^threshold is '6'; expected a number > 0"),
        (lambda: int8q.Linear(W, outliers=["off"]), ValueError, r"^outliers is \['off'\]; expected one of"),
        (lambda: int8q.Linear(W, kept_cols=[3, 3]), ValueError, r"^kept_cols\[1\] is 3; expected ascending columns"),
        (lambda: int8q.Linear(W, kept_cols=[8]), ValueError, r"^kept_cols\[0\] is 8; expected ascending columns"),
        (lambda: int8q.Linear(W, kept_cols=range(9)), ValueError, r"^kept_cols has shape \(9,\); expected .* at most 8"),
        (lambda: int8q.Linear(W, kept_cols=3), ValueError, r"^kept_cols has shape \(\); expected one dimension"),
        (lambda: int8q.Linear(W, kept_cols=[1.5]), TypeError, "^kept_cols is float64; expected int64"),
        (
            lambda: int8q.Linear(CODES, col_stats=STATS, kept_cols=[1]),
            ValueError,
            r"^kept_weights is None; expected float16 \(4, 1\) beside int8 weights",
        ),
        (
            lambda: int8q.Linear(W, kept_cols=[1], kept_weights=np.ones((4, 2), np.float16)),
            ValueError,
            r"^kept_weights has shape \(4, 2\); expected \(4, 1\)",
        ),
        (lambda: int8q.Linear.from_bytes("text"), TypeError, "^blob is a str; expected an object with the buffer"),
        (lambda: int8q.Linear.from_bytes(np.zeros(512, np.uint8)[::2]), ValueError, "^blob is a ndarray without contig"),
        (
            lambda: int8q.forward_many([int8q.Linear(W), int8q.Linear(W, outliers="off")], X),
            ValueError,
            r"^linears\[1\] has in_features 8, outliers 'off', threshold 6; expected those of linears\[0\], .*'column'",
        ),
        (
            lambda: int8q.forward_many([int8q.Linear(W)], X, [np.ones((2, 5), np.float32)]),
            ValueError,
            r"^outs\[0\] has shape \(2, 5\); expected \(2, 4\)",
        ),
        (lambda: int8q.Linear(W)(X[:, :7]), ValueError, r"x has shape \(2, 7\); expected \(..., 8\)"),
        (lambda: int8q.Linear(W)(np.float32(1)), ValueError, r"x has shape \(\)"),
        (lambda: int8q.Linear(W)(X.astype(np.int8)), TypeError, "x is int8; expected float32"),
        (lambda: int8q.Linear(W)(X, np.ones((2, 5), np.float32)), ValueError, r"out has shape \(2, 5\); expected \(2, 4\)"),
        (lambda: int8q.Linear(W)(X, np.ones((2, 4))), TypeError, "out is float64"),
        (lambda: int8q.Linear(W)(X, np.ones((4, 2), np.float32).T), ValueError, "out has strides"),
        (lambda: int8q.Linear(W)(X, np.broadcast_to(np.float32(1), (2, 4))), ValueError, "out has strides"),
        (lambda: int8q.Linear(W)(X, np.frombuffer(bytes(32), np.float32).reshape(2, 4)), ValueError, "out is read-only"),
        (lambda: int8q.Linear(W).backward(X), ValueError, r"dy has shape \(2, 8\); expected \(..., 4\)"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_output_that_overlaps_its_input_is_refused_and_left():
    x = np.ones((2, 8), np.float32)
    with pytest.raises(int8q.StatusValueError) as caught:
        int8q.Linear(np.ones((8, 8), np.float32))(x, out=x)
    assert caught.value.name == "INT8Q_OVERLAP"
    assert (x == 1).all()
    square = int8q.Linear(np.ones((8, 8), np.float32))
    for call, name in (
        (lambda: square(x, x), "x"),
        (lambda: square.backward(x, x), "dy"),
        (lambda: int8q.forward_many([square], x, [x]), "x"),
    ):
        with pytest.raises(int8q.StatusValueError, match=rf"^out at 0x\w+ overlaps {name} at "):
            call()
    y = np.ones((2, 8), np.float32)
    with pytest.raises(int8q.StatusValueError, match=r"^out at 0x\w+ overlaps an earlier one of outs at "):
        int8q.forward_many([square, square], x, [y, y])


@pytest.mark.parametrize("none", [None, [], (), np.empty(0, np.int64)], ids=repr)
def test_no_kept_columns(none):
    assert int8q.Linear(W, kept_cols=none).to_bytes() == int8q.Linear(W).to_bytes()


def test_an_output_of_rows_apart():
    layer, memory = int8q.Linear(W, STATS), np.zeros((3, 2, 6), np.float32)
    x = np.arange(48, dtype=np.float32).reshape(3, 2, 8)
    layer(x, out=memory[:, :, :4])
    assert bits(memory[:, :, :4].copy()) == bits(layer(x))
    assert (memory[:, :, 4:] == 0).all()
    with pytest.raises(ValueError, match="out has strides .* one batch"):
        layer(x, out=np.zeros((3, 3, 4), np.float32)[:, :2])
