# SPDX-License-Identifier: Apache-2.0
"""int8q.nn.Linear8bit and the operators under it, beside float64 and int8q.Linear."""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import int8q

torch = pytest.importorskip("torch", reason="torch is not in this environment")
nn = pytest.importorskip("int8q.nn")
_torch = pytest.importorskip("int8q._torch")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
K, N = 96, 40


@pytest.fixture
def linear():
    torch.manual_seed(3)
    return torch.nn.Linear(K, N)


@pytest.fixture
def layer(linear):
    return nn.Linear8bit.from_linear(linear)


def activations(*shape, dtype=torch.float32):
    x = torch.randn(*shape, K)
    x[..., 5] = 9  # an outlier column
    return x.to(dtype)


def numpy_layer(layer, **options):
    bias = None if layer.bias is None else layer.bias.detach().float().numpy()
    return int8q.Linear(layer.weight.numpy(), bias, col_stats=layer.SCB.numpy(), **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3), (0,), (1, 0, 4)])
def test_forward_is_the_numpy_layers(layer, dtype, shape):
    x = activations(*shape, dtype=dtype)
    y = layer.to(dtype)(x)
    assert y.dtype == dtype and y.shape == (*shape, N)
    want = numpy_layer(layer)(x)  # by DLPack
    bits = want.view(np.uint16).view(np.int16) if dtype == torch.bfloat16 else want
    assert torch.equal(y.detach().view(torch.int16) if dtype == torch.bfloat16 else y.detach(), torch.from_numpy(bits))


def test_one_row_without_dimensions_of_a_batch(layer):
    x = activations(1)
    assert torch.equal(layer(x[0]), layer(x)[0])


@pytest.mark.parametrize("outliers", ["column", "element", "off"])
def test_modes(linear, outliers):
    layer = nn.Linear8bit.from_linear(linear, outliers=outliers, threshold=2.0)
    x = activations(5)
    want = numpy_layer(layer, outliers=outliers, threshold=2.0)(x.numpy())
    assert np.array_equal(layer(x).detach().numpy(), want)


def test_strides(layer):
    x = activations(6)
    want = layer(x)
    wide = torch.zeros(6, 2 * K)
    wide[:, :K] = x
    assert torch.equal(layer(wide[:, :K]), want)
    assert torch.equal(layer(x.t().contiguous().t()), want)
    assert torch.equal(layer(x[:1].expand(6, K)), want[:1].expand(6, N))


def test_close_to_the_float_layer(linear, layer):
    x = activations(50)
    y, want = layer(x), linear(x)
    assert (y - want).norm() < 0.02 * want.norm()


def test_gradients(layer):
    x = activations(4, 3).requires_grad_()
    dy = torch.randn(4, 3, N)
    y = layer(x)
    y += 1  # in place, as peft's LoRA layers do
    (y * dy).sum().backward()
    want = (dy.double() * (layer.SCB.double() / 127)) @ layer.weight.double()
    assert torch.allclose(x.grad.double(), want, rtol=1e-5, atol=1e-5)
    assert torch.allclose(layer.bias.grad, dy.sum((0, 1)), rtol=1e-5, atol=1e-5)


def test_gradient_of_one_row(layer):
    x = activations(1)[0].requires_grad_()
    layer(x).sum().backward()
    assert x.grad.shape == (K,)
    assert torch.equal(layer.bias.grad, torch.ones(N))


def test_no_gradient_is_computed_for_frozen_inputs(layer):
    layer.bias.requires_grad_(False)
    assert not layer(activations(2)).requires_grad
    assert layer(activations(2).requires_grad_()).requires_grad


def test_casts_leave_the_weights_alone(layer):
    weight, stats = layer.weight, layer.SCB
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        layer.to(dtype)
        assert layer.bias.dtype == dtype
        assert torch.equal(layer.weight, weight)
        assert layer.SCB.dtype == torch.float32 and torch.equal(layer.SCB, stats)


def test_autocast(layer):
    x = activations(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, layer(x.bfloat16()))


def test_copies(layer):
    x = activations(3)
    want = layer(x)
    for made in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        assert torch.equal(made(x), want)
    made = copy.deepcopy(layer)
    made.load_state_dict({key: torch.zeros_like(value) for key, value in made.state_dict().items()})
    assert torch.equal(made(x), torch.zeros(3, N))
    assert torch.equal(layer(x), want)


def test_memory_that_is_written_to_is_opened_anew(layer):
    other = nn.Linear8bit.from_linear(torch.nn.Linear(K, N, bias=False), outliers="off")
    x = activations(2)
    layer(x)
    with torch.no_grad():
        layer.packed.copy_(other.packed)
        layer.bias.zero_()
    assert torch.equal(layer(x), other(x))
    layer.packed.zero_()
    with pytest.raises(int8q.StatusError, match="magic"):
        layer(x)


def test_state_is_bitsandbytes(layer):
    state = layer.state_dict()
    assert list(state) == ["weight", "SCB", "weight_format", "bias"]
    assert state["weight"].dtype == torch.int8 and state["weight"].shape == (N, K)
    assert state["SCB"].dtype == torch.float32 and state["SCB"].shape == (N,)
    assert (
        state["weight_format"].dtype == torch.uint8 and state["weight_format"].shape == () and state["weight_format"] == 0
    )
    made = torch.nn.Sequential(nn.Linear8bit(K, N))
    made.load_state_dict({f"0.{key}": value for key, value in state.items()})
    x = activations(2)
    assert torch.equal(made(x), layer(x))


def test_float_weights_are_quantized_as_they_are_loaded(linear, layer):
    made = nn.Linear8bit(K, N)
    made.load_state_dict(linear.state_dict())
    assert torch.equal(made.weight, layer.weight) and torch.equal(made.SCB, layer.SCB)


def test_old_weight_format(layer):
    state = layer.state_dict()
    nn.Linear8bit(K, N).load_state_dict({**state, "weight_format": "row"})
    for other, text in (("col_turing", "col_turing"), (torch.tensor(1, dtype=torch.uint8), "1")):
        with pytest.raises(RuntimeError, match=f"weight_format is {text}"):
            nn.Linear8bit(K, N).load_state_dict({**state, "weight_format": other})


def test_state_that_does_not_fit(layer):
    state = layer.state_dict()
    for changed, message in [
        ({"weight": state["weight"][:, 1:]}, r"weight has shape \(40, 95\); expected \(40, 96\)"),
        ({"SCB": state["SCB"][1:]}, r"SCB has shape \(39,\)"),
        ({"weight": state["weight"].double()}, "weight is torch.float64"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            nn.Linear8bit(K, N).load_state_dict({**state, **changed})
    del state["SCB"]
    with pytest.raises(RuntimeError, match="SCB is missing"):
        nn.Linear8bit(K, N).load_state_dict(state)
    del state["weight"]
    with pytest.raises(RuntimeError, match='Missing key.*"weight"'):
        nn.Linear8bit(K, N).load_state_dict(state)


def test_meta(layer):
    made = nn.Linear8bit(K, N, device="meta")
    assert made.weight.is_meta and made.SCB.is_meta and made(torch.empty(2, K, device="meta")).shape == (2, N)
    with torch.no_grad():
        assert made(torch.empty(2, K, device="meta")).is_meta


@pytest.mark.skipif(torch.__version__ < "2.1", reason="load_state_dict has no assign before torch 2.1")
def test_meta_takes_a_state(layer):
    made = nn.Linear8bit(K, N, device="meta")
    made.load_state_dict(layer.state_dict(), assign=True)
    x = activations(2)
    assert torch.equal(made(x), layer(x))


def test_a_layer_begins_with_zeros():
    assert torch.equal(nn.Linear8bit(K, N)(activations(2)), torch.zeros(2, N))
    assert nn.Linear8bit(K, N, bias=False).bias is None


def test_what_is_refused(layer):
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\); expected \(\.\.\., 96\)"):
        layer(torch.ones(2, 3))
    with pytest.raises(TypeError, match="x is torch.float64"):
        layer(torch.ones(2, K, dtype=torch.float64))


@pytest.mark.skipif(not hasattr(torch.library, "opcheck"), reason="torch before 2.4")
def test_operators_are_well_formed(layer):
    operators = torch.ops.int8q
    for x, bias in [(activations(3).requires_grad_(), layer.bias), (activations(2, 3, dtype=torch.bfloat16), None)]:
        torch.library.opcheck(operators.linear.default, (x, layer.packed, bias, N))
    torch.library.opcheck(operators.linear_backward.default, (torch.randn(3, N), layer.packed, K))


@pytest.mark.skipif(not hasattr(torch.library, "opcheck"), reason="torch before 2.4")
def test_one_graph_for_any_batch(layer):
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for rows in (2, 5, 9):
        x = activations(rows)
        assert torch.equal(compiled(x), layer(x))
    assert counter.frame_count == 1
    with torch.no_grad():
        for rows in (2, 5, 9):
            x = activations(rows)
            assert torch.equal(compiled(x), layer(x))
    assert counter.frame_count == 2


# ---------------------------------------------------------------------------------------------------- Past the dispatcher


def operators_seen(run):
    """Names of the operators that a TorchDispatchMode sees."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            names.append(str(function))
            return function(*arguments, **(keywords or {}))

    names = []
    with Watch():
        run()
    return names


@pytest.mark.skipif(
    _torch._is_watched(torch.ones(1)), reason="this torch does not say who watches; every call is the dispatcher's"
)
def test_inference_goes_past_the_dispatcher(layer, monkeypatch):
    """Else the tests below watch nothing."""
    calls = []
    monkeypatch.setattr(_torch, "_operator", lambda *arguments: calls.append("operator"))
    x = activations(2)
    with torch.no_grad():
        y = layer(x)
    with torch.inference_mode():
        layer(x)
    assert y.shape == (2, N) and calls == []
    layer(x)  # the bias may want a gradient
    layer.bias.requires_grad_(False)
    layer(x.requires_grad_())
    assert calls == ["operator"] * 2
    layer(x.detach())
    assert calls == ["operator"] * 2


def test_who_watches_sees_the_operator(layer):
    x = activations(2)
    with torch.no_grad():
        want = layer(x)
        assert "int8q.linear.default" in operators_seen(lambda: layer(x))
        with torch.profiler.profile() as profile:
            layer(x)
        assert "int8q::linear" in {event.key for event in profile.key_averages()}
        traced = torch.jit.trace(layer, (x,), check_trace=False)
        assert "int8q::linear" in str(traced.graph)
        assert torch.equal(traced(x), want)
        from torch.fx.experimental.proxy_tensor import make_fx

        graph = make_fx(layer)(x)
        assert "int8q.linear" in graph.code
        assert torch.equal(graph(x), want)


def test_function_modes_see_the_operator(layer):
    from torch.overrides import TorchFunctionMode

    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            seen.append(function)
            return function(*arguments, **(keywords or {}))

    with torch.no_grad(), Watch():
        layer(activations(2))
    assert torch.ops.int8q.linear.default in seen


def test_transforms_see_the_operator(layer):
    """vmap runs it slice by slice."""
    x = activations(3, 2)
    layer.bias.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(torch.func.vmap(layer)(x), torch.stack([layer(rows) for rows in x]))


def test_forward_gradients_are_refused(layer):
    from torch.autograd import forward_ad

    layer.bias.requires_grad_(False)
    with forward_ad.dual_level():
        assert layer(activations(2)).shape == (2, N)
        with pytest.raises(NotImplementedError, match="x has a tangent"):
            layer(forward_ad.make_dual(activations(2), torch.ones(2, K)))


def test_a_lazily_negated_x(layer):
    x = torch._neg_view(activations(2))
    layer.bias.requires_grad_(False)
    assert x.is_neg() and torch.equal(layer(x), layer(x.resolve_neg()))


def test_a_subclass_of_tensor_sees_the_operator(layer):
    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, arguments=(), keywords=None):
            seen.append(function)
            return super().__torch_function__(function, types, arguments, keywords or {})

    seen = []
    x = activations(2).as_subclass(Own)
    with torch.no_grad():
        assert type(layer(x)) is Own
    assert torch.ops.int8q.linear.default in seen


# ---------------------------------------------------------------------------------------------------- Threads, weights


def test_calls_run_on_torchs_threads(layer):
    from int8q.context import _openmp_of_torch, torch_context

    layer(activations(2))
    path = _openmp_of_torch()
    assert torch_context().describe()["runner"] == (path is not None)
    if "OpenMP" in torch.__config__.parallel_info().split("ATen parallel backend:")[1].splitlines()[0]:
        assert path is not None, "torch's threads are OpenMP's, and were not found"


def test_openmp_can_be_turned_off(layer):
    program = (
        "import sys, torch, int8q.nn, int8q.context as context\n"
        "torch.manual_seed(3); layer = int8q.nn.Linear8bit.from_linear(torch.nn.Linear(4096, 512))\n"
        "y = layer(torch.randn(64, 4096)); print(context.torch_context().describe()['runner'], y.double().sum().item())"
    )
    outputs = []
    for value in ("0", "1"):
        environment = {**os.environ, "INT8Q_OPENMP": value}
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program], env=environment, stdout=subprocess.PIPE, text=True
        )
        outputs.append(ran.stdout.split()[-2:])
    assert outputs[0][0] == "False" and outputs[0][1] == outputs[1][1]


def test_asking_for_the_weights_dtype_unpacks_nothing(layer, monkeypatch):
    monkeypatch.setattr(nn.Linear8bit, "_export", None)
    weight = layer.weight
    assert weight.dtype == torch.int8 and weight.shape == (N, K) and weight.numel() == N * K and not weight.requires_grad
    assert isinstance(weight, torch.Tensor) and not weight.is_floating_point()


def test_weights_are_used_like_a_tensor(layer):
    codes = layer.unpack()
    weight = layer.weight
    assert type(codes) is torch.Tensor and torch.equal(weight, codes) and torch.equal(codes, weight)
    assert (weight.numpy() == codes.numpy()).all() and weight.device == codes.device and weight.tolist() == codes.tolist()
    assert torch.equal(weight[3:5, 1], codes[3:5, 1]) and torch.equal(torch.stack([weight, weight])[1], codes)
    for copied in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight)), weight.clone(), weight.data):
        assert torch.equal(copied, codes)
    assert weight.data_ptr() and repr(weight) == repr(codes)


@pytest.mark.parametrize("made_inside", [True, False])
def test_inference_mode(linear, made_inside):
    x, want = torch.randn(3, linear.in_features), nn.Linear8bit.from_linear(linear)
    with torch.inference_mode():
        layer = nn.Linear8bit.from_linear(linear) if made_inside else want
        assert torch.equal(layer(x), want(x))
        assert torch.equal(copy.deepcopy(layer)(x), want(x))
    assert torch.equal(layer(x), want(x))


@pytest.mark.parametrize(
    "write",
    [
        lambda layer: layer.weight.zero_(),
        lambda layer: layer.weight.data.zero_(),
        lambda layer: layer.weight.detach().copy_(torch.zeros(())),
        lambda layer: torch.nn.init.zeros_(layer.weight),
        lambda layer: layer.weight.__setitem__(0, 0),
        lambda layer: setattr(layer.weight, "data", torch.zeros(layer.out_features, layer.in_features, dtype=torch.int8)),
        lambda layer: torch.add(layer.weight, 1, out=layer.weight),
    ],
)
def test_writing_to_the_weight_is_refused_and_not_lost(layer, write):
    with pytest.raises(RuntimeError, match="requantize"):
        write(layer)


@pytest.mark.parametrize("name", ["weight", "SCB"])
def test_setting_the_weight_is_refused(layer, name):
    with pytest.raises(AttributeError, match="requantize"):
        setattr(layer, name, torch.nn.Parameter(torch.zeros(layer.out_features, layer.in_features)))
    layer.weight.requires_grad = False
    assert not layer.weight.requires_grad


def test_from_linear_of_something_else():
    for module in (torch.nn.Embedding(4, 4), torch.nn.Conv2d(3, 4, 1)):
        with pytest.raises(TypeError, match=f"linear is a {type(module).__name__}; expected an nn.Linear"):
            nn.Linear8bit.from_linear(module)
    with pytest.raises(TypeError, match="weight is torch.float64"):
        nn.Linear8bit.from_linear(torch.nn.Linear(4, 4, dtype=torch.float64))


def test_a_gradient_of_the_gradient_is_an_error(layer):
    x = torch.randn(2, layer.in_features, requires_grad=True)
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only|once_differentiable"):
        dx.sum().backward()
