# SPDX-License-Identifier: Apache-2.0
"""int8q.nn.Linear8bit on a GPU, or on a driver that plays one (gpu_tensors.py)."""

import copy
import ctypes
import inspect
import pickle

import pytest
from gpu_tensors import DTYPES, ON_A_GPU, Emulated, K, N, emulated, on_a_gpu, to_cpu, torch

from int8q import _packed, _torch, nn

pytest_plugins = ("gpu_tensors",)


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
