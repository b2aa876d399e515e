# SPDX-License-Identifier: Apache-2.0
"""int8q.nn.Linear8bit and the stateless operations on a GPU: torch's, where there is one; else a driver without one
(tests/cuda_emulation), in whose memory tensors lie that call themselves tensors of a GPU. In one file, as all need them."""

import copy
import ctypes
import inspect
import os
import pickle

import numpy as np
import pytest

import int8q

torch = pytest.importorskip("torch", reason="torch is not in this environment")
nn = pytest.importorskip("int8q.nn")
_packed = pytest.importorskip("int8q._packed")
_torch = pytest.importorskip("int8q._torch")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
K, N = 96, 40
ON_A_GPU = "INT8Q_STUB_GPUS" not in os.environ and torch.cuda.is_available()
if not ON_A_GPU and "INT8Q_STUB_GPUS" not in os.environ:
    pytest.skip("neither a GPU nor the driver that plays one (LD_LIBRARY_PATH, INT8Q_STUB_GPUS)", allow_module_level=True)
on_a_gpu = pytest.mark.skipif(not ON_A_GPU, reason="torch has no GPU here")
emulated = pytest.mark.skipif(ON_A_GPU, reason="asks the driver that plays a GPU")


# ---------------------------------------------------------------------------------------------------- Tensors of a GPU


class _Driver:
    """libcuda.so.1 as far as tensors need it. Their memory is one block, which a test has to itself from its start on."""

    BYTES = 8 << 20

    def __init__(self):
        self.lib = ctypes.CDLL("libcuda.so.1")
        context, at = ctypes.c_void_p(), ctypes.c_uint64()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxPushCurrent_v2", context)
        self.call("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(self.BYTES))
        # The emulator takes for written what was uploaded, and knows nothing of what the host stores.
        noise = np.full(self.BYTES, 0x5A, np.uint8)
        self.call("cuMemcpyHtoDAsync_v2", at, ctypes.c_void_p(noise.ctypes.data), ctypes.c_size_t(self.BYTES), None)
        self.call("cuStreamSynchronize", None)
        self.memory, self.taken, self.stream = at.value, 0, 0

    def call(self, name, *arguments):
        status = getattr(self.lib, name)(*arguments)
        assert status == 0, f"{name} of the driver's stub returns {status}"

    def count(self, name):
        self.lib.int8q_stub_count.restype = ctypes.c_int64
        return self.lib.int8q_stub_count(name.encode())

    def empty(self, shape, dtype):
        like = torch.empty(shape, dtype=dtype, device="meta")
        size = like.numel() * like.element_size()
        begin, self.taken = self.taken, self.taken + -(-size // 512) * 512
        assert self.taken <= self.BYTES
        block = (ctypes.c_uint8 * size).from_address(self.memory + begin)
        return torch.from_numpy(np.ctypeslib.as_array(block)).view(dtype).view(shape)


class Emulated(torch.Tensor):
    """A tensor in the memory of the driver's stub. What torch itself computes of it is an Emulated in the host's."""

    driver = None
    is_cuda, is_cpu = True, False

    def get_device(self):
        return 0

    def new_empty(self, *shape, dtype=None):
        shape = shape[0] if isinstance(shape[0], (tuple, list)) else shape
        return self.driver.empty(shape, dtype or self.dtype).as_subclass(Emulated)

    def new_zeros(self, *shape, dtype=None):
        return self.new_empty(*shape, dtype=dtype).zero_()

    def cpu(self):
        return self.as_subclass(torch.Tensor).clone()

    def contiguous(self):
        return self if self.is_contiguous() else Emulated.of(self)

    def __deepcopy__(self, memo):
        made = Emulated.of(self.detach())
        return torch.nn.Parameter(made) if isinstance(self, torch.nn.Parameter) else made

    @classmethod
    def of(cls, tensor):
        return cls.driver.empty(tensor.shape, tensor.dtype).copy_(tensor).as_subclass(cls)


@pytest.fixture
def to_gpu(monkeypatch):
    """A function that brings a tensor to the GPU."""
    if ON_A_GPU:
        yield lambda tensor: tensor.cuda()
        return
    Emulated.driver = Emulated.driver or _Driver()
    Emulated.driver.taken = 0
    monkeypatch.setattr(_packed, "stream_of", lambda tensor: Emulated.driver.stream)
    # What the dispatcher would do with a tensor of a GPU; it takes these for the CPU's.
    monkeypatch.setattr(_torch, "_operator", _torch._linear)
    # A parameter's memory would be exchanged else, and not its class.
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield Emulated.of
    torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def to_cpu(tensor):
    return tensor.detach().cpu()


@pytest.fixture
def layer():
    torch.manual_seed(3)
    return nn.Linear8bit.from_linear(torch.nn.Linear(K, N))


def on_gpu(layer, to_gpu):
    return copy.deepcopy(layer)._apply(to_gpu)


def activations(*shape, dtype=torch.float32):
    x = torch.randn(*shape, K)
    x[..., 5] = 9  # an outlier column
    return x.to(dtype)


def differs_by(y, want, x, layer):
    """The largest |y - want| in units of what rounding allows: y's type once, fp32 for each of K products."""
    unit = torch.finfo(y.dtype).eps
    products = to_cpu(x).abs().float() @ layer.dequantize().abs().T + (0 if layer.bias is None else layer.bias.abs())
    bound = unit * want.float().abs() + (6 * K + 8) * 2.0**-23 * products
    return ((to_cpu(y).float() - want.float()).abs() / bound).max().item() if y.numel() else 0.0


# ---------------------------------------------------------------------------------------------------- Tests


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3), (0,), (80,)])
def test_forward_is_the_cpus(layer, to_gpu, dtype, shape):
    layer = layer.to(dtype)
    x = activations(*shape, dtype=dtype)
    moved = on_gpu(layer, to_gpu)
    with torch.no_grad():
        y = moved(to_gpu(x))
        assert y.dtype == dtype and y.shape == (*shape, N) and y.is_cuda
        assert differs_by(y, layer(x), x, layer) <= 1


def test_without_bias(to_gpu):
    layer = nn.Linear8bit.from_linear(torch.nn.Linear(K, N, bias=False))
    x = activations(3)
    assert differs_by(on_gpu(layer, to_gpu)(to_gpu(x)), layer(x), x, layer) <= 1


@pytest.mark.parametrize("rows", [1, 200])
def test_backward_is_the_cpus(layer, to_gpu, rows):
    dy, moved = torch.randn(rows, N), on_gpu(layer, to_gpu)
    want = torch.ops.int8q.linear_backward(dy, layer.packed, K)
    dx = (torch.ops.int8q.linear_backward if ON_A_GPU else _torch._linear_backward)(to_gpu(dy), moved.packed, K)
    products = dy.abs() @ layer.dequantize().abs()
    # dY as three bf16 terms on the GPU, whose sums may lose two units at each of N products and three terms.
    assert dx.is_cuda and ((to_cpu(dx) - want).abs() <= (2.0**-22 + 2 * (N + 8) * 2.0**-24) * products).all()


def test_weights_come_and_go_without_loss(layer, to_gpu):
    moved = on_gpu(layer, to_gpu)
    assert moved.packed.is_cuda and torch.equal(to_cpu(moved.unpack()), layer.unpack())
    assert torch.equal(to_cpu(moved.SCB), layer.SCB) and torch.equal(to_cpu(moved.dequantize()), layer.dequantize())
    assert moved.weight.shape == (N, K) and moved.weight.dtype == torch.int8
    state = moved.state_dict()
    assert torch.equal(to_cpu(state["weight"]), layer.unpack()) and torch.equal(to_cpu(state["SCB"]), layer.SCB)
    back = moved._apply(to_cpu)
    assert not back.packed.is_cuda and torch.equal(back.packed, layer.packed)


@pytest.mark.parametrize("options", [{"outliers": "element", "threshold": 3.5}, {"outliers": "off"}, {"outliers": "all"}])
def test_options_come_along(to_gpu, options):
    layer = nn.Linear8bit.from_linear(torch.nn.Linear(K, N), **options)
    x = activations(5)
    moved = on_gpu(layer, to_gpu)
    assert differs_by(moved(to_gpu(x)), layer(x), x, layer) <= 1
    assert torch.equal(moved._apply(to_cpu).packed, layer.packed)


def test_bytes_that_were_moved_alone(layer, to_gpu):
    """As accelerate moves a buffer: without the module."""
    moved, x = on_gpu(layer, to_gpu), activations(3)
    bytes_of_the_gpu = to_cpu(moved.packed)
    moved.packed = to_gpu(layer.packed)
    assert differs_by(moved(to_gpu(x)), layer(x), x, layer) <= 1
    assert torch.equal(to_cpu(moved.packed), bytes_of_the_gpu)
    back = copy.deepcopy(layer)
    back.packed = bytes_of_the_gpu
    assert torch.equal(back(x), layer(x)) and torch.equal(back.packed, layer.packed)


def test_moved_in_inference_mode_it_still_has_gradients(layer, to_gpu):
    moved = copy.deepcopy(layer)
    moved.packed = to_cpu(on_gpu(layer, to_gpu).packed)
    with torch.inference_mode():
        moved(activations(3))
    assert not moved.packed.is_inference() and torch.equal(moved.packed, layer.packed)
    x = activations(3).requires_grad_()
    torch.ops.int8q.linear(x, moved.packed, moved.bias, N).sum().backward()
    assert x.grad is not None


def test_the_default_device_is_not_asked(layer, to_gpu):
    bytes_of_the_gpu = to_cpu(on_gpu(layer, to_gpu).packed)
    with torch.device("meta"):
        assert torch.equal(_packed.as_blob(bytes_of_the_gpu), layer.packed)
        assert torch.equal(_packed.as_rows(layer.packed), bytes_of_the_gpu)


@pytest.mark.skipif("assign" not in inspect.signature(torch.nn.Module.load_state_dict).parameters, reason="no assign")
def test_assigned_weights_stay_where_they_are(layer, to_gpu):
    made, x = nn.Linear8bit(K, N), activations(3)
    made.load_state_dict({name: to_gpu(tensor) for name, tensor in layer.state_dict().items()}, assign=True)
    assert made.packed.is_cuda and made.bias.is_cuda
    assert differs_by(made(to_gpu(x)), layer(x), x, layer) <= 1


def test_loading_keeps_the_memory_that_a_graph_reads(layer, to_gpu):
    moved, other = on_gpu(layer, to_gpu), nn.Linear8bit.from_linear(torch.nn.Linear(K, N))
    address, x = moved.packed.data_ptr(), activations(3)
    moved.load_state_dict({name: to_gpu(tensor) for name, tensor in other.state_dict().items()})
    assert moved.packed.data_ptr() == address and differs_by(moved(to_gpu(x)), other(x), x, other) <= 1


def test_requantizing_keeps_the_memory_that_a_graph_reads(layer, to_gpu):
    moved, other, x = on_gpu(layer, to_gpu), torch.nn.Linear(K, N), activations(3)
    address, kept = moved.packed.data_ptr(), moved._kept()
    moved.requantize(to_gpu(other.weight.detach()))
    want = nn.Linear8bit.from_linear(other)
    want.bias = layer.bias
    assert moved.packed.data_ptr() == address and differs_by(moved(to_gpu(x)), want(x), x, want) <= 1
    for before in (kept, to_gpu(layer.packed)):  # the second as a move of the CPU's bytes alone leaves it
        moved.requantize(to_gpu(other.weight.detach()))
        moved._put(before)
        assert moved.packed.data_ptr() == address and differs_by(moved(to_gpu(x)), layer(x), x, layer) <= 1
    assert torch.equal(moved._apply(to_cpu).packed, layer.packed)


def test_requantizing_what_came_in_inference_mode(to_gpu):
    moved = nn.Linear8bit(K, N, bias=False)
    with torch.inference_mode():
        moved._apply(to_gpu)
    moved.requantize(to_gpu(torch.ones(N, K)))
    assert moved.packed.is_inference() and (to_cpu(moved.unpack()) == 127).all()


def test_memory_of_to_empty_is_not_taken_for_weights(layer, to_gpu):
    moved = on_gpu(layer, to_gpu)
    larger = moved.packed.new_empty(moved.packed.numel() + 64)
    larger[: moved.packed.numel()].copy_(moved.packed)
    assert _packed.Rows.of(larger) is None


def test_a_copy_has_its_own_weights(layer, to_gpu):
    moved, x = on_gpu(layer, to_gpu), activations(3)
    copied = copy.deepcopy(moved)
    moved.requantize(to_gpu(torch.ones(N, K)))
    assert differs_by(copied(to_gpu(x)), layer(x), x, layer) <= 1


@on_a_gpu
def test_pickles_go_where_they_came_from(layer):
    moved, x = copy.deepcopy(layer).cuda(), activations(3).cuda()
    assert torch.equal(pickle.loads(pickle.dumps(moved))(x), moved(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantizing_there_gives_the_same_weights(to_gpu, dtype):
    weight = torch.randn(N, K - 5, dtype=dtype)  # rows of 91 codes
    layer, moved = (nn.Linear8bit(K - 5, N, bias=False) for _ in range(2))
    layer.requantize(weight)
    moved._apply(to_gpu).requantize(to_gpu(weight))
    assert torch.equal(moved._apply(to_cpu).packed, layer.packed)


def test_int8_weights_with_their_stats(layer, to_gpu):
    codes, stats = layer.unpack(), layer.SCB
    moved = on_gpu(nn.Linear8bit(K, N), to_gpu)
    moved.load_state_dict({"weight": to_gpu(codes), "SCB": to_gpu(stats), "bias": to_gpu(layer.bias.detach())})
    assert torch.equal(moved._apply(to_cpu).packed, layer.packed)


def test_a_conv1d(to_gpu):
    weight = torch.randn(K, 300)
    conv = torch.nn.Module()
    conv.weight, conv.bias = torch.nn.Parameter(weight), None
    layer = nn.Linear8bit.from_linear(conv)
    conv.weight = torch.nn.Parameter(to_gpu(weight))
    made = nn.Linear8bit.from_linear(conv)
    assert made.packed.is_cuda and torch.equal(made._apply(to_cpu).packed, layer.packed)


def test_weights_that_are_not_finite_change_nothing(layer, to_gpu):
    moved = on_gpu(layer, to_gpu)
    bad = torch.ones(N, K)
    bad[3, 7] = float("nan")
    with pytest.raises(ValueError, match="row 3 of the weights has the stat nan"):
        moved.requantize(to_gpu(bad))
    assert torch.equal(moved._apply(to_cpu).packed, layer.packed)


def test_two_devices_are_an_error(layer, to_gpu):
    moved, x = on_gpu(layer, to_gpu), activations(3)
    with torch.no_grad(), pytest.raises(RuntimeError, match="x is on .* and the layer on .*; expected one device"):
        layer(to_gpu(x))
    with torch.no_grad(), pytest.raises(RuntimeError, match="x is on .* and the layer on .*; expected one device"):
        moved._parameters.update(bias=None)
        moved(x)


def test_the_operators_are_there_for_cuda():
    for name in "int8q::linear", "int8q::linear_backward":
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")


def test_a_bias_that_changes(layer, to_gpu):
    """In place, and into other memory; of which one that does not lie in a row is added by torch."""
    moved, x = on_gpu(layer, to_gpu), activations(3)
    with torch.no_grad():
        for bias in (moved.bias.mul_(0).add_(2), torch.full((N,), 3.0), None, torch.ones(N, 2)[:, 0]):
            bias = bias if bias is None or bias is moved.bias else to_gpu(bias)
            moved._parameters["bias"], layer.bias = bias, None if bias is None else torch.nn.Parameter(to_cpu(bias))
            assert differs_by(moved(to_gpu(x)), layer(x), x, layer) <= 1


@emulated
def test_forward_launches_two_kernels_and_waits_for_nothing(layer, to_gpu):
    driver, moved, x = Emulated.driver, on_gpu(layer, to_gpu), to_gpu(activations(80))
    waits = "cuStreamSynchronize", "cuMemAlloc_v2", "cuMemcpyDtoHAsync_v2", "cuMemcpyHtoDAsync_v2"
    before = {name: driver.count(name) for name in waits}
    for rows, launches in ((3, 1), (80, 2), (80, 2), (3, 1)):
        already = driver.count("cuLaunchKernel")
        moved(x[:rows])
        assert driver.count("cuLaunchKernel") - already == launches
    assert {name: driver.count(name) for name in waits} == before


@emulated
def test_the_first_call_can_be_captured(layer, to_gpu):
    driver, moved, x = Emulated.driver, on_gpu(layer, to_gpu), activations(80)
    there = to_gpu(x)
    stream, graph, count = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t()
    driver.call("cuStreamCreate", ctypes.byref(stream), 0)
    driver.call("cuStreamBeginCapture_v2", stream, 0)
    try:
        driver.stream = stream.value
        y = moved(there)
    finally:
        driver.stream = 0
        driver.call("cuStreamEndCapture", stream, ctypes.byref(graph))
    driver.call("cuGraphGetNodes", graph, None, ctypes.byref(count))
    assert count.value == 2
    driver.call("cuGraphLaunch", graph, stream)
    assert differs_by(y, layer(x), x, layer) <= 1


@emulated
def test_each_stream_has_scratch_memory_of_its_own(to_gpu):
    driver, stream = Emulated.driver, ctypes.c_void_p()
    driver.call("cuStreamCreate", ctypes.byref(stream), 0)
    weight, codes = to_gpu(torch.randn(8, 100)), to_gpu(torch.zeros(8, 100, dtype=torch.int8))  # not in place: K % 16
    col_stats, allocated = to_gpu(torch.zeros(8)), []
    try:
        for number in (0, stream.value, 0, stream.value):
            driver.stream, before = number, driver.count("cuMemAlloc_v2")
            _packed.quantize_weights(weight, codes, col_stats)
            allocated.append(driver.count("cuMemAlloc_v2") - before)
    finally:
        driver.stream = 0
    assert allocated[1:] == [1, 0, 0]


@on_a_gpu
def test_gradients_are_the_cpus(layer):
    moved = copy.deepcopy(layer).cuda()
    gradients = []
    for module, x in ((layer, activations(7)), (moved, None)):
        x = gradients[0][0].detach().cuda() if x is None else x
        x.requires_grad_(True)
        module(x).square().sum().backward()
        gradients.append((x, x.grad, module.bias.grad))
    for want, got in zip(gradients[0][1:], gradients[1][1:]):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-3)


@on_a_gpu
@pytest.mark.parametrize("rows", [1, 80])
def test_a_graph_of_torch_replays_the_same_bits(layer, rows):
    moved, x = copy.deepcopy(layer).cuda(), activations(rows).cuda()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = moved(x)
    for _ in range(2):
        x.copy_(activations(rows))
        graph.replay()
        assert torch.equal(y, moved(x))


@on_a_gpu
def test_a_graph_of_torch_sees_new_weights(layer):
    moved, x = copy.deepcopy(layer).cuda(), activations(3).cuda()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = moved(x)
    moved.requantize(torch.randn(N, K, device="cuda"))
    graph.replay()
    assert torch.equal(y, moved(x))


@on_a_gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_torch_compile(layer, mode):
    moved, x = torch.nn.Sequential(copy.deepcopy(layer).cuda(), torch.nn.ReLU()), activations(80).cuda()
    compiled = torch.compile(moved, mode=mode, fullgraph=True)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(compiled(x), moved(x))


@on_a_gpu
def test_it_runs_on_the_current_stream(layer):
    moved, stream = copy.deepcopy(layer).cuda(), torch.cuda.Stream()
    x, fresh = torch.zeros(80, K, device="cuda"), activations(80).cuda()
    torch.cuda.synchronize()
    with torch.no_grad(), torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        x.copy_(fresh)
        y = moved(x)
    stream.synchronize()
    assert torch.equal(y, moved(x))


# ---------------------------------------------------------------------------------------------------- Stateless operations

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
