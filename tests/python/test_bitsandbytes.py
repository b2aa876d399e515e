# SPDX-License-Identifier: Apache-2.0
"""The bitsandbytes plug-in beside bitsandbytes itself. Each program runs in a process of its own, whose only trace of an
installed int8q is a folder with the entry point; INT8Q_BITSANDBYTES=0 gives bitsandbytes' own results. INT8Q_CC is a C
compiler.

One file, since all parts run programs that begin with the same PRELUDE."""

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import int8q
from int8q import _abi

torch = pytest.importorskip("torch", reason="torch is not in this environment")
ROOT = Path(__file__).parents[2]
GROUP, ENTRY = "bitsandbytes.backends", 'int8q = "int8q._bitsandbytes:register"'
WARNING = "int8q leaves bitsandbytes' kernels as they are: "

try:
    found = version("bitsandbytes")
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < (0, 46):
        pytest.skip(f"bitsandbytes {found} has no entry points for plug-ins", allow_module_level=True)
except PackageNotFoundError:
    pytest.skip("bitsandbytes is not in this environment", allow_module_level=True)


def install(folder, name="int8q_plugin"):
    """Metadata as of an installed package with the entry point."""
    where = folder / f"{name}-0.dist-info"
    where.mkdir(parents=True)
    (where / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    (where / "entry_points.txt").write_text(f"[{GROUP}]\n{ENTRY.replace(chr(34), '')}\n")
    return folder


@pytest.fixture(scope="session")
def plugin(tmp_path_factory):
    return install(tmp_path_factory.mktemp("plugin"))


PRELUDE = """
import collections, logging, sys, warnings
logging.disable(logging.WARNING)  # of each cast to float16
import torch
caught = []
warnings.showwarning = lambda message, category, *rest: caught.append(str(message))

def import_bitsandbytes():
    global ops, calls
    import bitsandbytes
    ops, calls = torch.ops.bitsandbytes, collections.Counter()
    context = sys.modules.get("int8q.context")
    if context is None:
        return bitsandbytes
    call = context.Context.call
    def count(self, function, *arguments):
        calls[function.__name__] += 1
        return call(self, function, *arguments)
    context.Context.call = count
    return bitsandbytes
"""


def run(program, plugin, choice=None, *arguments, flags=(), **environment):
    """Runs a program with the plug-in installed; its output in lines."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("INT8Q_BITSANDBYTES")}
    path = os.pathsep.join([str(plugin), str(Path(int8q.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**inherited, "PYTHONPATH": path, "OMP_NUM_THREADS": "2", **environment}
    if choice is not None:
        environment["INT8Q_BITSANDBYTES"] = choice
    command = [sys.executable, *flags, "-c", PRELUDE + program, *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def results(program, plugin, tmp_path_factory, *choices):
    """What a program saves to the file argv[1], for each choice."""
    folder = tmp_path_factory.mktemp("results")
    for choice in choices:
        run(program, plugin, choice, folder / choice)
    return [torch.load(folder / choice) for choice in choices]


def same(a, b):
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def rounding(dtype):
    """The unit roundoff, and half of the smallest denormal."""
    info = torch.finfo(dtype)
    return info.eps / 2, info.smallest_normal * info.eps / 2


# ---------------------------------------------------------------------------------------------------- Operators

OPERATORS = """
import_bitsandbytes()
torch.manual_seed(1)
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
saved = {}

def save(name, operator, *arguments, flat=None):
    before = calls.total()
    try:
        result = operator(*[a.clone() if isinstance(a, torch.Tensor) else a for a in (flat or arguments)])
    except Exception as error:
        result = type(error).__name__, str(error).splitlines()[0]
    saved[name] = arguments, result, calls.total() - before

def activations(shape, dtype, outliers):
    x = torch.randn(shape).clamp(-4, 4)
    if outliers == "some":
        x[..., 3] *= 20
        x.view(-1, shape[-1])[-1, 5] = -6
        x[..., 9] = 5.99  # as float16 it is less, and at the threshold, which is rounded likewise
    if outliers == "all":
        x = x.sign() * 9 + x
    return x.to(dtype)

def codes(*shape):
    return torch.randint(-128, 128, shape, dtype=torch.int8)

own = "0" in sys.argv[1][-1]
for dtype in FLOATS:
    for outliers in ("none", "some", "all"):
        for shape in ((1, 64), (5, 200), (33, 129), (2, 3, 70)):
            x = activations(shape, dtype, outliers)
            flat = x.view(-1, shape[-1])  # bitsandbytes' own kernels take matrices
            for threshold in (0.0, 6.0, 5.99, 0.3, 2.7, 1e6, -1.0, float("nan"), float("inf")):
                save(f"quant {dtype} {outliers} {shape} {threshold}", ops.int8_vectorwise_quant, x, threshold,
                     flat=(flat, threshold) if own else None)
            CA, SCA, cols = ops.int8_vectorwise_quant(flat, 6.0)
            CB, SCB = codes(37, shape[-1]), torch.rand(37)
            for bias in (None, torch.randn(37).to(dtype)):
                arguments = x, CA.view(shape), CB, SCA, SCB, cols, bias
                save(f"mixed {dtype} {outliers} {shape} {bias is None}", ops.int8_mixed_scaled_mm, *arguments,
                     flat=(flat, CA, CB, SCA, SCB, cols, bias) if own else None)
    for shape in ((1, 8), (7, 3), (9, 1000), (2, 5, 33)):
        A, B = codes(*shape), codes(19, shape[-1])
        rows = A.view(-1, shape[-1])
        row_stats, col_stats = torch.rand(len(rows)) * 5, torch.rand(19)
        for bias in (None, torch.randn(19).to(dtype), torch.randn(19)):
            rest = B, row_stats, col_stats, bias, dtype
            save(f"scaled {dtype} {shape} {bias is None or bias.dtype}", ops.int8_scaled_mm, A, *rest,
                 flat=(rows, *rest) if own else None)
            acc = (rows.long() @ B.long().T).int()
            rest = row_stats, col_stats, dtype, bias
            save(f"dequant {dtype} {shape} {bias is None or bias.dtype}", ops.int8_mm_dequant,
                 acc.view(*shape[:-1], 19), *rest, flat=(acc, *rest) if own else None)

for shape in ((1, 8), (7, 3), (9, 1000), (2, 5, 33)):
    A, B = codes(*shape), codes(19, shape[-1])
    save(f"matmul {shape}", ops.int8_linear_matmul, A, B)
    out = torch.full((*shape[:-1], 19), -7, dtype=torch.int32)
    save(f"matmul {shape} strided", ops.int8_linear_matmul, A.transpose(0, 1).contiguous().transpose(0, 1), B)
    save(f"matmul out {shape}", lambda A, B, out: (ops.int8_linear_matmul.out(A, B, out), out), A, B, out)
A = codes(6, 50)
save("rows", ops.int8_vectorwise_dequant, A, torch.rand(6))
acc = (A.long() @ A.long().T).int()
save("default dtypes", lambda A, acc, r, c: (ops.int8_scaled_mm(A, A, r, c), ops.int8_mm_dequant(acc, r, c)),
     A, acc, torch.rand(6), torch.rand(6))
nan = torch.randn(4, 32); nan[1, 7] = float("nan"); nan[2] = 0
save("nan", ops.int8_vectorwise_quant, nan, 6.0)

# What bitsandbytes' own kernel does.
x = torch.randn(5, 16, dtype=torch.float64); x[:, 2] = 8
CA, SCA, cols = ops.int8_vectorwise_quant(x.float(), 6.0)
CB, SCB = codes(7, 16), torch.rand(7)
decline = lambda name, operator, *arguments: save("declined " + name, operator, *arguments)
decline("float64", ops.int8_vectorwise_quant, x, 6.0)
decline("float64 mixed", ops.int8_mixed_scaled_mm, x, CA, CB, SCA, SCB, cols)
decline("tiny threshold", ops.int8_vectorwise_quant, x.half(), 1e-9)
decline("no rows", ops.int8_vectorwise_quant, torch.empty(0, 16), 6.0)
decline("no columns", ops.int8_vectorwise_quant, torch.empty(3, 0), 6.0)
decline("no rows to multiply", ops.int8_scaled_mm, codes(0, 16), CB, torch.empty(0), SCB)
decline("one stat", ops.int8_mm_dequant, torch.ones(2, 3, dtype=torch.int32), torch.ones(1), torch.ones(3))
decline("stats of half", ops.int8_mm_dequant, torch.ones(2, 3, dtype=torch.int32), torch.ones(2).half(), torch.ones(3))
decline("floats as accumulators", ops.int8_mm_dequant, torch.ones(2, 3), torch.ones(2), torch.ones(3))
decline("rows of another stat", ops.int8_vectorwise_dequant, codes(2, 3, 4), torch.rand(3))
decline("wrong depth", ops.int8_scaled_mm, CA, codes(7, 15), SCA, SCB)
decline("wrong out", ops.int8_linear_matmul.out, CA, CB, torch.empty(5, 7))
decline("bias of integers", ops.int8_scaled_mm, CA, CB, SCA, SCB, torch.arange(7))
for name, other in (("descending", [9, 2]), ("twice", [2, 2]), ("negative", [-1]), ("out of range", [16])):
    decline("columns " + name, ops.int8_mixed_scaled_mm, x.float(), CA, CB, SCA, SCB, torch.tensor(other))
torch.save(saved, sys.argv[1])
"""


@pytest.fixture(scope="session")
def operators(plugin, tmp_path_factory):
    """name: (arguments, bitsandbytes' own result, int8q's, the calls that reached the library)."""
    theirs, ours = results(OPERATORS, plugin, tmp_path_factory, "0", "1")
    assert all(count == 0 for _, _, count in theirs.values())
    assert list(theirs) == list(ours)
    return {name: (arguments, theirs[name][1], result, count) for name, (arguments, result, count) in ours.items()}


def chosen(operators, *kinds):
    found = [(name, *case) for name, case in operators.items() if name.split()[0] in kinds]
    assert found
    return found


def test_codes_stats_columns_and_accumulators_are_equal(operators):
    for name, arguments, theirs, ours, count in chosen(operators, "quant", "matmul", "rows", "nan"):
        assert count == 1, name
        if name.startswith("quant"):
            assert ours[0].shape == arguments[0].shape, name
            ours = ours[0].view(theirs[0].shape), *ours[1:]
        assert same(theirs, ours), name


def product(acc, row_stats, col_stats):
    """The exact product in float64, and how far fp32 and bitsandbytes' constant for 1/127^2 take one from it."""
    exact = acc.double() * row_stats.double()[:, None] * col_stats.double() / 127**2
    return exact, exact.abs() * (abs(6.200124e-05 * 127**2 - 1) + 8 * 2.0**-24)


def close(theirs, ours, exact, bound):
    u, least = rounding(ours.dtype)
    error = (theirs.double() - ours.double().view(theirs.shape)).abs()
    return theirs.dtype == ours.dtype and bool((error <= bound + 3 * u * (exact.abs() + bound) + 3 * least).all())


def test_scaled_products(operators):
    for name, arguments, theirs, ours, count in chosen(operators, "scaled", "dequant"):
        assert count == 1, name
        if name.startswith("scaled"):
            a, b, row_stats, col_stats, bias, _ = arguments
            acc = a.flatten(0, -2).long() @ b.long().T
        else:
            acc, row_stats, col_stats, _, bias = arguments
            acc = acc.flatten(0, -2)
        exact, bound = product(acc, row_stats, col_stats)
        if bias is not None:
            exact = exact + bias.double()
            bound = bound + 2 * 2.0**-24 * (exact.abs() + bias.double().abs())
        assert ours.shape == (*arguments[0].shape[:-1], len(col_stats)), name
        assert close(theirs, ours, exact, bound), name
    for theirs, ours in zip(*operators["default dtypes"][1:3]):
        assert theirs.dtype == ours.dtype == torch.float16


def mixed_bound(A, CA, CB, SCA, SCB, cols, bias):
    """The exact result, and the bound between int8q's one rounding to A's dtype and bitsandbytes': of the product, of the
    weight's outlier columns and of the sum."""
    A, CA = A.flatten(0, -2), CA.flatten(0, -2)
    u, least = rounding(A.dtype)
    exact, bound = product(CA.long() @ CB.long().T, SCA, SCB)
    exact = exact if bias is None else exact + bias.double()
    bound = bound + 2.0**-22 * exact.abs() + (u + 2.0**-24) * (exact.abs() + bound) + least
    weights = CB[:, cols].double() * SCB.double()[:, None] / 127
    x, count = A[:, cols].double(), len(cols)
    gamma = 2.0**-24 * (count + 4) * 2
    bound = bound + (u * (1 + gamma) + gamma) * (x.abs() @ weights.abs().T) + least * x.abs().sum(1)[:, None]
    return exact + x @ weights.T, bound


def test_mixed_products(operators):
    columns = set()
    for name, arguments, theirs, ours, count in chosen(operators, "mixed"):
        assert count == 1, name
        A, cols = arguments[0], arguments[5]
        columns.add(0 if len(cols) == 0 else 2 if len(cols) == A.shape[-1] else 1)
        exact, bound = mixed_bound(*arguments)
        assert ours[0].shape == (*A.shape[:-1], 37) and close(theirs[0], ours[0], exact, bound), name
        assert same(theirs[1], ours[1].view(theirs[1].shape)), name
    assert columns == {0, 1, 2}


def test_what_is_declined_is_bitsandbytes_own(operators):
    errors = 0
    for name, arguments, theirs, ours, _ in chosen(operators, "declined"):
        if name == "declined wrong depth":  # where bitsandbytes has a kernel for this CPU, that words it otherwise
            theirs, ours = theirs[:1], ours[:1]
        if name.startswith("declined columns") and isinstance(theirs[0], torch.Tensor):  # their scaled product is int8q's
            assert close(theirs[0], ours[0], *mixed_bound(*arguments, None)), name
            theirs, ours = theirs[1:], ours[1:]
        assert same(theirs, ours), (name, theirs, ours)
        errors += isinstance(theirs, tuple) and isinstance(theirs[0], str)
    assert errors >= 4


def test_torch_sees_the_operators_as_before(plugin):
    """Schema and fake kernels; nothing of int8q runs on fake tensors."""
    program = """
import_bitsandbytes()
from torch._subclasses.fake_tensor import FakeTensorMode
x, q = torch.randn(3, 2, 16), torch.randint(-127, 128, (6, 16), dtype=torch.int8)
q3, rows, cols = q.view(3, 2, 16), torch.rand(6), torch.rand(6)
acc = torch.ones(6, 6, dtype=torch.int32)
for operator, arguments in (
    (ops.int8_vectorwise_quant.default, (x, 0.0)),
    (ops.int8_vectorwise_dequant.default, (q, rows)),
    (ops.int8_linear_matmul.default, (q3, q)),
    (ops.int8_linear_matmul.out, (q, q, acc)),
    (ops.int8_mm_dequant.default, (acc, rows, cols, torch.bfloat16)),
    (ops.int8_scaled_mm.default, (q3, q, rows, cols, None, torch.bfloat16)),
):
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
    before = calls.total()
    assert before > 0
    with FakeTensorMode() as mode:
        operator(*[mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments])
    assert calls.total() == before
mixed = x[0], q[:2], q, rows[:2], cols, torch.tensor([3])
torch.library.opcheck(ops.int8_mixed_scaled_mm.default, mixed, test_utils="test_schema")
print("done")
"""
    assert run(program, plugin) == ["done"]


def test_two_threads_at_once(plugin):
    program = """
from concurrent.futures import ThreadPoolExecutor
import_bitsandbytes()
A, B = (torch.randint(-127, 128, (n, 300), dtype=torch.int8) for n in (40, 200))
want = ops.int8_linear_matmul(A, B)
with ThreadPoolExecutor(4) as pool:
    assert all(torch.equal(c, want) for c in pool.map(lambda _: ops.int8_linear_matmul(A, B), range(200)))
print("done")
"""
    assert run(program, plugin) == ["done"]


# ---------------------------------------------------------------------------------------------------- Linear8bitLt

LAYERS = """
bitsandbytes = import_bitsandbytes()
saved = {}

def layer(dtype, threshold, fp16_weights=False):
    torch.manual_seed(2)
    made = bitsandbytes.nn.Linear8bitLt(128, 48, has_fp16_weights=fp16_weights, threshold=threshold)
    return made.to("cpu").to(dtype)

def step(name, made, x, dy, autocast=False):
    made.zero_grad()
    x = x.clone().requires_grad_()
    before = calls.copy()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = made(x)
    dy = dy.to(y.dtype)
    if x.dim() == 2 or not made.state.has_fp16_weights:
        y.backward(dy)
    weight = made.weight.grad if made.state.has_fp16_weights else made.state.CB
    saved[name] = x, y, dy, x.grad, made.bias.grad, weight, made.state.SCB, calls - before

for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for threshold in (0.0, 6.0):
        made = layer(dtype, threshold)
        for shape in ((1, 128), (9, 128), (2, 5, 128)):
            x, dy = torch.randn(shape).to(dtype), torch.randn(*shape[:-1], 48).to(dtype)
            x[..., 7] = 9
            name = dtype, threshold, shape
            made.eval()
            step(("eval", *name), made, x, dy)
            made.train()
            step(("train", *name), made, x, dy)
            with torch.no_grad():
                saved["no_grad", *name] = made(x)
x, dy = torch.randn(6, 128), torch.randn(6, 48)
x[:, 7] = 9
step("autocast", layer(torch.float32, 6.0).train(), x, dy, True)
step("float64", layer(torch.float64, 6.0).train(), x.double(), dy)
step("empty", layer(torch.float32, 6.0).train(), x[:0], dy[:0])
trained = layer(torch.float32, 6.0, True).train()
trained(x)  # from here on it has int8 codes, too
step("float weights", trained, x, dy)
nan = layer(torch.float32, 0.0).train()
nan(x)
nan.state.SCB[3] = float("inf")
step("infinite stat", nan, x, dy)
torch.save(saved, sys.argv[1])
"""


@pytest.fixture(scope="session")
def layers(plugin, tmp_path_factory):
    return results(LAYERS, plugin, tmp_path_factory, "0", "1", "train")


CASES = [(dtype, t, s) for dtype in (torch.float32, torch.float16, torch.bfloat16) for t in (0.0, 6.0) for s in (1, 9, 5)]


def named(kind, dtype, threshold, rows):
    return kind, dtype, threshold, (2, 5, 128) if rows == 5 else (rows, 128)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_linear8bitlt_in_eval_mode(layers, case):
    x, theirs, *_, codes, stats, _ = layers[0][named("eval", *case)]
    for other in layers[1:]:
        ours, calls = (other[named("eval", *case)][i] for i in (1, 7))
        assert calls == {"int8q_quantize_rows": 1, "int8q_mixed_scaled_multiply" if case[1] else "int8q_scaled_multiply": 1}
        rows = x.detach().view(-1, 128)
        kept = torch.zeros_like(rows, dtype=torch.bool)
        kept[:, [7]] = case[1] > 0
        kept[:, (rows.abs() >= 6).any(0)] = case[1] > 0
        row_stats = rows.half().float().masked_fill(kept, 0).abs().amax(1)
        quantized = torch.round(rows.half().float() * (127 / row_stats[:, None])).masked_fill(kept, 0).to(torch.int8)
        bias = layer_bias(case[0])
        exact, bound = mixed_bound(rows, quantized, codes, row_stats, stats, kept[0].nonzero().view(-1), bias)
        assert ours.shape == theirs.shape
        assert close(theirs.detach().view(exact.shape), ours.detach().view(exact.shape), exact, bound)


def layer_bias(dtype):
    torch.manual_seed(2)
    return torch.nn.Linear(128, 48).bias.detach().to(dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_training_path_stays_bitsandbytes_unless_asked_for(layers, case):
    theirs, ours = (r[named("train", *case)] for r in layers[:2])
    assert all(map(same, theirs[:7], ours[:7])) and not ours[7]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_by_int8q(layers, case):
    _, _, dy, dx, dbias, codes, stats, _ = layers[0][named("train", *case)]
    _, y, _, ours, our_bias, *_, calls = layers[2][named("train", *case)]
    assert same(y.detach(), layers[2][named("no_grad", *case)])
    assert same(y.detach(), layers[2][named("eval", *case)][1].detach())  # LLM.int8() is the forward here, too
    assert calls["int8q_create_linear"] == 1
    u, least = rounding(dx.dtype)
    weights = codes.double() * stats.double()[:, None] / 127
    size = dy.double().view(-1, 48).abs() @ weights.abs()
    gamma = 2.0**-24 * (48 + 4) * 1.01
    # bitsandbytes rounds the weights to dx's dtype and int8q dy * stats, if at all; both round fp32 sums
    bound = (2 * (1 + u) * (1 + gamma) - 2 + gamma) * size + 2 * u * size + 2 * least * (1 + 48 * 127)
    assert ours.dtype == dx.dtype and ours.shape == dx.shape
    assert bool(((dx.double() - ours.double()).abs().view(size.shape) <= bound).all())
    rows = dy.double().view(-1, 48)
    assert our_bias.dtype == dbias.dtype and our_bias.shape == dbias.shape
    error = (our_bias.double() - rows.sum(0)).abs()
    assert bool((error <= len(rows) * (u + 2.0**-24) * rows.abs().sum(0) + least).all())


@pytest.mark.parametrize("name", ["float64", "empty", "float weights"])
def test_training_that_stays_bitsandbytes(layers, name):
    theirs, ours = layers[0][name], layers[2][name]
    assert all(map(same, theirs[:7], ours[:7]))


def test_training_under_autocast(layers):
    _, theirs, _, dx, dbias, *_ = layers[0]["autocast"]
    _, ours, _, our_dx, our_bias, *_, calls = layers[2]["autocast"]
    assert theirs.dtype == ours.dtype == torch.bfloat16 and calls["int8q_mixed_scaled_multiply"] == 1
    assert (our_dx.dtype, our_bias.dtype) == (dx.dtype, dbias.dtype) == (torch.float32, torch.float32)


def test_training_with_a_stat_that_is_not_finite(layers):
    theirs, ours = (r["infinite stat"][3] for r in (layers[0], layers[2]))
    assert torch.equal(theirs.isfinite(), ours.isfinite()) and not bool(ours.isfinite().all())


@pytest.mark.parametrize("choice", ["1", "train"])
def test_torch_compile(plugin, choice):
    program = """
bitsandbytes = import_bitsandbytes()
for threshold in (0.0, 6.0):
    torch._dynamo.reset()
    layer = bitsandbytes.nn.Linear8bitLt(64, 24, has_fp16_weights=False, threshold=threshold).to("cpu").eval()
    x = torch.randn(5, 64)
    x[:, 3] = 8
    want = layer(x).detach()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=threshold == 0)
    with torch.no_grad():
        assert torch.equal(compiled(x), want)
    layer.train()
    x.requires_grad_()
    y = layer(x)
    y.backward(torch.ones_like(y))
    want, x.grad = x.grad, None
    before = calls.total()
    z = compiled(x)
    z.backward(torch.ones_like(z))
    assert torch.equal(z, y) and torch.equal(x.grad, want)
    assert (calls.total() > before) == (sys.argv[1] == "train")
print("done")
"""
    assert run(program, plugin, choice, choice) == ["done"]


# ---------------------------------------------------------------------------------------------------- Choices

REPORT = """
A = torch.randint(-127, 128, (4, 64), dtype=torch.int8)
assert torch.equal(ops.int8_linear_matmul(A, A), (A.long() @ A.long().T).int())
x = torch.randn(3, 64)
q, stats, _ = ops.int8_vectorwise_quant(x, 6.0)
assert torch.equal(stats, x.abs().amax(1))
layer = bitsandbytes.nn.Linear8bitLt(64, 8, has_fp16_weights=False, threshold=6.0).to("cpu")
layer(x.requires_grad_()).sum().backward()
print(calls["int8q_multiply"], calls["int8q_create_linear"], *[text for text in caught if "int8q" in text], sep="|")
"""
IMPORT = "bitsandbytes = import_bitsandbytes()\n"


def report(plugin, choice=None, program=IMPORT, **options):
    """(operators are int8q's, training is, warnings)"""
    (line,) = run(program + REPORT, plugin, choice, **options)
    operators, training, *warned = line.split("|")
    return bool(int(operators)), bool(int(training)), warned


def test_choices(plugin):
    assert report(plugin) == (True, False, [])
    assert report(plugin, "1") == (True, False, [])
    assert report(plugin, "0") == (False, False, [])
    assert report(plugin, "train") == (True, True, [])
    text = WARNING + "INT8Q_BITSANDBYTES is 'banana'; expected '0', '1' or 'train'"
    assert report(plugin, "banana") == (False, False, [text])


def test_without_the_entry_point_nothing_changes(tmp_path):
    assert report(tmp_path, "train") in [(False, False, []), (True, True, [])]  # the second where int8q is installed


@pytest.mark.parametrize("first", ["import int8q.nn\n", "import int8q\nint8q.default_context()\n", IMPORT])
def test_import_order(plugin, first):
    after = "import int8q.nn\nassert int8q.nn.Linear8bit(8, 4)(torch.ones(1, 8)).shape == (1, 4)\n"
    assert report(plugin, "train", first + IMPORT + after) == (True, True, [])


def test_two_installations(tmp_path):
    install(tmp_path, "one")
    install(tmp_path, "two")
    assert report(tmp_path, "train") == (True, True, [])
    program = "warnings.simplefilter('always', RuntimeWarning)\n" + IMPORT
    assert len(report(tmp_path, program=program, INT8Q_LIBRARY="/nonexistent")[2]) == 1


@pytest.fixture
def library(tmp_path):
    def build(source):
        target = tmp_path / "made.so"
        compiler = [os.environ.get("INT8Q_CC", "cc"), "-shared", "-fPIC", "-o", target, "-x", "c", "-"]
        try:
            subprocess.run(compiler, input=source, text=True, check=True)
        except FileNotFoundError:
            pytest.skip(f"no C compiler: {compiler[0]}")
        return str(target)

    return build


def bootstrap(level, hash_text):
    return (
        f"unsigned int8q_abi_version(void) {{ return {level[0] << 16 | level[1]}u; }}\n"
        f'const char* int8q_abi_hash(unsigned level) {{ (void)level; return "{hash_text}"; }}\n'
    )


UNFIT = {
    "foreign": ("int unrelated;", "loaded no int8q library"),
    "older": (bootstrap((0, 9), ""), "needs ABI 1.x, loaded 0.9"),
    "another": (bootstrap((1, 0), "f" * 64), "another declaration of the same level"),
    "lacks functions": (bootstrap((1, 0), _abi.HASHES[1, 0]), "int8q_quantize_rows needs ABI 1.0"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_library_that_cannot_serve(plugin, library, kind):
    source, expected = UNFIT[kind]
    operators, training, (text,) = report(plugin, "train", INT8Q_LIBRARY=library(source))
    assert not operators and not training
    assert text.startswith(WARNING) and expected in text


def test_a_missing_library(plugin):
    operators, training, (text,) = report(plugin, "train", INT8Q_LIBRARY="/nonexistent/libint8q.so.1")
    assert not operators and not training
    assert text.startswith(WARNING) and "/nonexistent/libint8q.so.1 does not load" in text
    assert report(plugin, "0", INT8Q_LIBRARY="/nonexistent/libint8q.so.1") == (False, False, [])


def test_warnings_that_are_errors(plugin):
    """The warning then is a line on stderr, and bitsandbytes still imports."""
    program = "warnings.simplefilter('error', RuntimeWarning)\n" + IMPORT
    assert report(plugin, program=program, INT8Q_LIBRARY="/nonexistent") == (False, False, [])


TROUBLE = {
    "numpy": ("sys.modules['int8q.context'] = None\n", "import of int8q.context halted"),
    "a later bitsandbytes": (
        "import int8q._bitsandbytes as p\np._KERNELS['int8_scaled_mm'] = lambda A, B: A\n",
        "bitsandbytes::int8_scaled_mm takes A, B, row_stats, col_stats, bias, dtype; expected A, B",
    ),
    "isa": ("import os\nos.environ['INT8Q_CPU_ISA'] = 'banana'\n", "banana"),
}


@pytest.mark.parametrize("before, expected", TROUBLE.values(), ids=TROUBLE)
def test_other_trouble(plugin, before, expected):
    operators, training, (text,) = report(plugin, "train", before + IMPORT)
    assert not operators and not training and text.startswith(WARNING) and expected in text


def test_the_entry_point_is_pyprojects():
    text = (ROOT / "pyproject.toml").read_text()
    (section,) = re.findall(rf'^\[project\.entry-points\."{re.escape(GROUP)}"\]\n((?:.+\n)+)', text, re.M)
    assert section.splitlines() == [ENTRY]
