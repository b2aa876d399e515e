# SPDX-License-Identifier: Apache-2.0
"""The stateless operations on tensors of a GPU, or of a driver that plays one (gpu_tensors.py), beside the NumPy face."""

import numpy as np
import pytest
from gpu_tensors import DTYPES, ON_A_GPU, Emulated, K, N, emulated, on_a_gpu, to_cpu, torch

import int8q

pytest_plugins = ("gpu_tensors",)

MODES = ["column", "element", "off", "all"]


def floats(m, k, dtype=torch.float32):
    torch.manual_seed(m + k)
    x = torch.randn(m, k)
    if m and k:
        x[:, k // 2], x[0, 1], x[-1, -1] = 9, -6, float("inf") if m > 6 else 7
    return x.to(dtype)


def codes(m, k):
    return torch.randint(-128, 128, (m, k), dtype=torch.int8)


def wide(to_gpu):
    """to_gpu, but rows lie farther apart."""
    return lambda tensor: to_gpu(torch.nn.functional.pad(tensor, (0, 3)))[:, : tensor.shape[1]]


def transposed(to_gpu):
    """to_gpu, but columns lie side by side."""
    return lambda tensor: to_gpu(tensor.t().contiguous()).t()


def of_the_cpu(array):
    """The NumPy face's result as a tensor."""
    if array.dtype == int8q.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def same_bits(found, array):
    want, found_there = of_the_cpu(array), to_cpu(found)
    assert found.is_cuda and found.dtype == want.dtype and found.shape == want.shape
    bits = torch.int32 if found.dtype == torch.float32 else found.dtype  # of NaN, too
    return torch.equal(found_there.view(bits), want.view(bits))


def assert_near(found, array, terms, cols=0):
    """Both are rounded once and near the same value: with outlier columns within (6 cols + 8) units of the terms' sizes
    on a GPU, twice that as tensor cores truncate (docs/cuda.md), and within cols + 9 on a CPU (oracle.py)."""
    want, unit = of_the_cpu(array), torch.finfo(found.dtype).eps
    assert found.is_cuda and found.dtype == want.dtype and found.shape == want.shape
    found, want, terms = to_cpu(found).double(), want.double(), terms.double()
    bound = unit * (want.abs() + torch.finfo(want.dtype).tiny) + (13 * cols + 25) * 2.0**-24 * terms + 2.0**-24 * unit
    assert torch.equal(found.isfinite(), want.isfinite())
    excess = ((found - want).abs() / bound)[want.isfinite()]
    assert not excess.numel() or excess.max() <= 1, excess.max()


@pytest.mark.parametrize("outliers", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, k", [(0, 91), (3, 0), (1, 96), (7, 91), (70, 96)])
def test_quantize_rows(to_gpu, m, k, dtype, outliers):
    x = floats(m, k, dtype)
    want = int8q.quantize_rows(x, 6.0, outliers)
    for there in (to_gpu, wide(to_gpu), transposed(to_gpu)):
        found = int8q.quantize_rows(there(x), 6.0, outliers)
        assert type(found) is int8q.QuantizedRows and all(map(same_bits, found, want))


@pytest.mark.parametrize("m, n, k", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (5, 40, 91), (70, 40, 96), (70, 33, 131)])
def test_multiply(to_gpu, m, n, k):
    a, b = codes(m, k), codes(n, k)
    for there in (to_gpu, wide(to_gpu), transposed(to_gpu)):
        assert same_bits(int8q.multiply(there(a), there(b)), int8q.multiply(a, b))


def test_dequantize_rows(to_gpu):
    q, stats = codes(7, 91), torch.rand(7) + 0.1
    for dtype, of_torch in ((np.float32, None), (np.float16, torch.float16), ("bfloat16", torch.bfloat16)):
        want = int8q.dequantize_rows(q, stats, dtype)
        for given in (dtype, of_torch or torch.float32):
            y = int8q.dequantize_rows(wide(to_gpu)(q), to_gpu(torch.stack([stats, stats], 1))[:, 0], given)
            assert_near(y, want, of_the_cpu(want).abs())


@pytest.mark.parametrize("outliers", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, k", [(0, 91), (1, 96), (6, 91), (70, 96)])
def test_products(to_gpu, m, k, dtype, outliers):
    x, weight, bias = floats(m, k).clamp(-20, 20).to(dtype), torch.randn(N, k), torch.randn(N).to(dtype)
    b, col_stats, _ = map(of_the_cpu, int8q.quantize_rows(weight, outliers="off"))
    a, row_stats, cols = map(of_the_cpu, int8q.quantize_rows(x, 6.0, outliers))
    acc = of_the_cpu(int8q.multiply(a, b))
    products = acc.abs() * row_stats[:, None] * col_stats / 127**2
    of_outliers = x[:, cols].float().abs() @ (b[:, cols].abs() * col_stats[:, None] / 127).t()
    for there, added in ((to_gpu, None), (wide(to_gpu), bias)):
        terms = products + (0 if added is None else added.float().abs())
        on_cpu = a, row_stats, b, col_stats
        on_gpu = there(a), to_gpu(row_stats), there(b), to_gpu(col_stats)
        added_there = None if added is None else to_gpu(added)
        options = {"outliers": outliers, "threshold": 6.0}

        found = int8q.scaled_multiply(*on_gpu, added_there, dtype)
        want = int8q.scaled_multiply(*on_cpu, added, numpy_of(dtype))
        assert_near(found, want, terms)

        found = int8q.dequantize_accumulators(there(acc), on_gpu[1], on_gpu[3], added_there, dtype)
        want = int8q.dequantize_accumulators(acc, row_stats, col_stats, added, numpy_of(dtype))
        assert_near(found, want, terms)

        found = int8q.matmul(there(x), on_gpu[2], on_gpu[3], added_there, **options)
        want = int8q.matmul(x, b, col_stats, added, **options)
        assert_near(found, want, terms + of_outliers, len(cols))
        if outliers != "off":
            mixed = int8q.mixed_scaled_multiply(there(x), *on_gpu, to_gpu(cols), added_there, **options)
            assert torch.equal(to_cpu(mixed), to_cpu(found))
    assert int8q.matmul(to_gpu(x), to_gpu(b), to_gpu(col_stats), dtype=torch.bfloat16).dtype == torch.bfloat16


def numpy_of(dtype):
    return {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: int8q.bfloat16}[dtype]


def test_no_outlier_columns(to_gpu):
    x, a, stats = to_gpu(torch.ones(2, K)), to_gpu(codes(2, K)), to_gpu(torch.ones(2))
    want = to_cpu(int8q.scaled_multiply(a, stats, a, stats))
    for cols in ([], (), to_gpu(torch.zeros(0, dtype=torch.int64))):
        assert torch.equal(to_cpu(int8q.mixed_scaled_multiply(x, a, stats, a, stats, cols)), want)


def test_count_outliers(to_gpu):
    x, y = floats(70, 91), floats(5, 91)
    want = (x.abs() >= 2).sum(0)
    for there in (to_gpu, wide(to_gpu), transposed(to_gpu)):
        assert same_bits(int8q.count_outliers(there(x), 2.0), want.numpy())
    counts = to_gpu(want)
    assert int8q.count_outliers(to_gpu(y), 2.0, counts) is counts
    assert same_bits(counts, (want + (y.abs() >= 2).sum(0)).numpy())
    assert int8q.select_outlier_cols(to_cpu(counts), 75, 0.9).tolist() == [45]


def test_products_wait_for_nothing(to_gpu, monkeypatch):
    """And what a product takes for numbers of columns is what quantizing wrote: the memory held others."""
    x, weight = floats(5, K).clamp(-20, 20), codes(N, K)
    x_there, weight_there, stats = to_gpu(x), to_gpu(weight), to_gpu(torch.ones(N))
    want = int8q.matmul(x, weight, torch.ones(N))
    if ON_A_GPU:
        int8q.matmul(x_there, weight_there, stats)
        torch.cuda.set_sync_debug_mode("error")
    else:
        driver, empty = Emulated.driver, Emulated.driver.empty
        monkeypatch.setattr(driver, "empty", lambda shape, dtype: empty(shape, dtype).zero_())
        monkeypatch.setattr(Emulated, "item", lambda tensor: pytest.fail("the host waits"))
        waits = "cuStreamSynchronize", "cuMemcpyDtoHAsync_v2", "cuMemcpyHtoDAsync_v2"
        before = [driver.count(name) for name in waits]
    try:
        y = int8q.matmul(x_there, weight_there, stats)
    finally:
        if ON_A_GPU:
            torch.cuda.set_sync_debug_mode("default")
    assert ON_A_GPU or [driver.count(name) for name in waits] == before
    a, row_stats, cols = map(of_the_cpu, int8q.quantize_rows(x))
    terms = (a.abs().float() @ weight.abs().float().t()) * row_stats[:, None] / 127**2
    assert_near(y, want, terms + x[:, cols].abs() @ weight[:, cols].abs().float().t() / 127, len(cols))


@emulated
def test_another_gpu(to_gpu):
    class Other(Emulated):
        def get_device(self):
            return 1

    a = to_gpu(codes(2, K))
    with pytest.raises(ValueError, match="^b is on .*; expected .*, where the first array is; b.to"):
        int8q.multiply(a, a.as_subclass(Other))


FLOAT, CODES, STATS = torch.ones(2, K), torch.ones(2, K, dtype=torch.int8), torch.ones(2)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda f, q, s: int8q.multiply(q, CODES), ValueError, r"^b is on cpu; expected .*; b\.to\('.*'\) copies it$"),
        (
            lambda f, q, s: int8q.multiply(q, CODES.numpy()),
            TypeError,
            r"^b is a ndarray; .*; torch\.as_tensor\(b, device='",
        ),
        (lambda f, q, s: int8q.dequantize_rows(q, [1.0, 2.0]), TypeError, "^stats is a list; expected a torch tensor on "),
        (lambda f, q, s: int8q.scaled_multiply(q, s, q, s, STATS), ValueError, "^bias is on cpu; expected "),
        (lambda f, q, s: int8q.matmul(f, q, STATS), ValueError, "^col_stats is on cpu; expected "),
        (lambda f, q, s: int8q.matmul(f, CODES, s), ValueError, "^weight is on cpu; expected "),
        (lambda f, q, s: int8q.count_outliers(f, 6.0, np.zeros(K, np.int64)), TypeError, "^counts is a ndarray; expected "),
        (lambda f, q, s: int8q.mixed_scaled_multiply(f, q, s, q, s, [1]), TypeError, "^outlier_cols is a list; expected "),
        (
            lambda f, q, s: int8q.quantize_rows(f.double()),
            TypeError,
            r"^x is torch\.float64; expected float32 or float16 or bf",
        ),
        (lambda f, q, s: int8q.quantize_rows(q), TypeError, r"^x is torch\.int8; expected float32 or float16 or bfloat16$"),
        (lambda f, q, s: int8q.multiply(f, q), TypeError, r"^a is torch\.float32; expected int8$"),
        (lambda f, q, s: int8q.dequantize_rows(q, s.half()), TypeError, r"^stats is torch\.float16; expected float32$"),
        (
            lambda f, q, s: int8q.dequantize_rows(q, s, torch.float64),
            TypeError,
            r"^dtype is torch\.float64; expected float32",
        ),
        (lambda f, q, s: int8q.quantize_rows(f[0]), ValueError, rf"^x has shape \({K},\); expected two dimensions$"),
        (lambda f, q, s: int8q.dequantize_rows(q, s[:1]), ValueError, r"^stats has shape \(1,\); expected \(2,\)$"),
        (lambda f, q, s: int8q.scaled_multiply(q, s, q, s, s[:1]), ValueError, r"^bias has shape \(1,\); expected \(2,\)$"),
        (lambda f, q, s: int8q.matmul(f, q[:, :9], s), ValueError, rf"^weight has shape \(2, 9\); expected \(N, {K}\)"),
        (lambda f, q, s: int8q.multiply(q, q[:, :9]), ValueError, rf"^b\.shape\[1\] is 9; expected {K}, to match"),
        (
            lambda f, q, s: int8q.count_outliers(f[:, ::2], 6.0, counts_of(f)[::2]),
            ValueError,
            "^counts has stride 2; expec",
        ),
        (lambda f, q, s: int8q.quantize_rows(f.requires_grad_()), ValueError, r"^x requires grad, .*; pass x\.detach\(\)$"),
        (
            lambda f, q, s: int8q.multiply(q, q, context=CONTEXT),
            ValueError,
            r"^context is int8q\.Context\(.*; expected None",
        ),
        (
            lambda f, q, s: int8q.quantize_rows(f, context=CONTEXT),
            ValueError,
            r"^context is int8q\.Context\(.*; expected N",
        ),
    ],
)
def test_errors_of_operations(to_gpu, call, error, message):
    with pytest.raises(error, match=message):
        call(*map(to_gpu, (FLOAT, CODES, STATS)))


CONTEXT = int8q.Context(threads=1)


def counts_of(x):
    return x.new_zeros(x.shape[1], dtype=torch.int64)


def test_products_beyond_exactness(to_gpu):
    a = to_gpu(torch.zeros(1, 131072, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"^a\.shape\[1\] is 131072; the s32 product is exact up to K = 131071"):
        int8q.multiply(a, a)


@on_a_gpu
def test_where_tensors_of_a_gpu_do_not_go():
    weight = torch.ones(N, K, device="cuda")
    for call in (lambda: int8q.Linear(weight), lambda: int8q.multiply(CODES, weight.to(torch.int8))):
        with pytest.raises(ValueError, match="expected host memory, .*; on a CUDA device int8q.nn.Linear8bit works"):
            call()


@on_a_gpu
def test_operations_run_on_the_current_stream():
    stream, q = torch.cuda.Stream(), codes(80, K).cuda()
    a, want = torch.zeros_like(q), int8q.multiply(q, q)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        a.copy_(q)
        c = int8q.multiply(a, a)
    stream.synchronize()
    assert torch.equal(c, want)
