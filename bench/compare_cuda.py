#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""int8q beside bitsandbytes and torch on a GPU, interleaved in one process.

Each layer takes [M,K] with 7 outlier columns and gives a new [M,N], bias added; torch._int_mm alone is a bare product.
M up to 64 take layers of more than 256 MiB of int8 weights in turn, copies of one, so that no cache holds the next. A
sample is as many calls as take 10 ms, between two events; "graph" is a captured pass over the layers, replayed. Medians are
printed; with --json every sample is stored, after each shape.

    PYTHONPATH=python INT8Q_LIBRARY=build/release/lib/libint8q.so.1 bench/compare_cuda.py --json compare_cuda.json
"""

import argparse
import functools
import importlib.metadata
import json
import logging
import math
import os
import statistics
import time
import unittest.mock
from pathlib import Path

import torch
from machine import describe_machine, describe_process

import int8q
from int8q import _abi
from int8q.nn import Linear8bit

THRESHOLD, OUTLIERS = 6.0, 7
ROTATED_BYTES, ROTATED_ROWS = 256 << 20, 64
SAMPLE_S, TURNS = 0.01, 9

# bitsandbytes warns at each call that it casts bf16 to fp16; writing that would be counted as its time.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


class Int8q:
    """Linear8bit, as its users call it."""

    operation, dtype, outliers = "linear", torch.bfloat16, "column"

    def __init__(self, weight, bias):
        linear = torch.nn.Linear(*weight.shape[::-1], device="meta")
        linear.weight, linear.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
        self.module = Linear8bit.from_linear(linear, outliers=self.outliers, threshold=THRESHOLD)

    def prepare(self, x):
        return x

    def __call__(self, x):
        return self.module(x)


class Int8qElement(Int8q):
    outliers = "element"


@functools.lru_cache(maxsize=2)  # a shape's weight and bias, of which many layers are made
def on_host(matrix):
    return matrix.float().cpu()


class Bitsandbytes:
    """Linear8bitLt with int8 weights, in eval mode. It computes in fp16 and casts what is not."""

    operation, dtype, threshold = "linear", torch.bfloat16, THRESHOLD

    def __init__(self, weight, bias):
        import bitsandbytes

        # Random weights, which it would draw on the CPU for each layer, are not wanted.
        with unittest.mock.patch.object(torch.nn.Linear, "reset_parameters", lambda self: None):
            self.module = bitsandbytes.nn.Linear8bitLt(
                weight.shape[1], weight.shape[0], bias=True, has_fp16_weights=False, threshold=self.threshold
            )
        self.module.load_state_dict({"weight": on_host(weight), "bias": on_host(bias)})
        self.module = self.module.to("cuda").eval()

    def prepare(self, x):
        return x

    def __call__(self, x):
        return self.module(x)


class BitsandbytesF16(Bitsandbytes):
    dtype = torch.float16


class BitsandbytesWithoutOutliers(Bitsandbytes):
    threshold = 0.0


class BitsandbytesWithoutOutliersF16(BitsandbytesWithoutOutliers):
    dtype = torch.float16


class TorchBf16:
    operation, dtype = "linear", torch.bfloat16

    def __init__(self, weight, bias):
        self.weight, self.bias = weight.clone(), bias

    def prepare(self, x):
        return x

    def __call__(self, x):
        return torch.nn.functional.linear(x, self.weight, self.bias)


def rows_to_codes(x):
    return torch.round(x.float() * (127 / x.float().abs().amax(1, keepdim=True))).to(torch.int8)


class TorchIntMm:
    """torch._int_mm alone: s8 . s8 -> s32, without quantization, outliers, scales or bias."""

    operation, dtype = "gemm", torch.bfloat16

    def __init__(self, weight, bias):
        self.codes = rows_to_codes(weight).t()

    def prepare(self, x):
        return rows_to_codes(x)

    def __call__(self, codes):
        return torch._int_mm(codes, self.codes)


def contenders():
    """name -> (how to make a layer, is a graph of it measured too). bitsandbytes asks the host, which no graph can."""
    return {
        "int8q": (Int8q, True),
        "int8q:element": (Int8qElement, True),
        "bitsandbytes:6": (Bitsandbytes, False),
        "bitsandbytes:6:f16": (BitsandbytesF16, False),
        "bitsandbytes:0": (BitsandbytesWithoutOutliers, False),
        "bitsandbytes:0:f16": (BitsandbytesWithoutOutliersF16, False),
        "torch:bf16": (TorchBf16, True),
        "torch:int_mm": (TorchIntMm, False),
    }


class Timed:
    """Calls between two events; `calls` a pass."""

    def __init__(self, run, calls):
        self.run, self.calls, self.passes, self.samples = run, calls, 1, []
        self.begin, self.end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        seconds = self.elapsed(1)
        while seconds < SAMPLE_S / 4 and self.passes < 1 << 14:
            self.passes *= 2
            seconds = self.elapsed(self.passes)
        self.passes = max(1, math.ceil(self.passes * SAMPLE_S / seconds))

    def elapsed(self, passes):
        self.begin.record()
        for _ in range(passes):
            self.run()
        self.end.record()
        self.end.synchronize()
        return max(self.begin.elapsed_time(self.end) * 1e-3, 1e-9)

    def sample(self):
        self.elapsed(self.passes // 10 + 1)
        self.samples.append(self.elapsed(self.passes) / (self.passes * self.calls) * 1e6)


def eager_pass(layers, prepared):
    def run():
        for layer, argument in zip(layers, prepared):
            layer(argument)

    return run


def captured_pass(layers, prepared):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        eager_pass(layers, prepared)()
    return graph.replay


class Comparison:
    def __init__(self, seconds):
        self.end = time.monotonic() + seconds
        self.rows, self.missing = [], []

    def miss(self, why, **key):
        self.missing.append({**key, "why": why})
        print("  not measured: " + " ".join(f"{name}={value}" for name, value in key.items()) + f": {why}", flush=True)

    def build(self, weight, bias, copies, **key):
        """name -> layers, each with weights of its own, which are equal."""
        layers = {}
        for name, (make, graph) in contenders().items():
            try:
                layers[name] = [make(weight, bias) for _ in range(copies)], graph
            except Exception as error:  # whatever an opponent raises is the reason why it is missing
                self.miss(f"{type(error).__name__}: {error}", contender=name, **key)
        return layers

    def prepare(self, layers, m, x, reference, **key):
        """(name, graph?) -> Timed, and relative errors of the first layers."""
        timed, errors = {}, {}
        for name, (all_layers, graph) in layers.items():
            own = all_layers if m <= ROTATED_ROWS else all_layers[:1]
            try:
                prepared = [layer.prepare(x.to(layer.dtype)) for layer in own]
                y = [layer(argument) for layer, argument in zip(own, prepared)][0]
                if own[0].operation == "linear":
                    errors[name] = ((y.float() - reference).norm() / reference.norm()).item()
                del y
                timed[name, False] = Timed(eager_pass(own, prepared), len(own))
                if graph:
                    timed[name, True] = Timed(captured_pass(own, prepared), len(own))
            except Exception as error:
                self.miss(f"{type(error).__name__}: {error}", contender=name, M=m, **key)
        return timed, errors

    def measure(self, shape, all_m):
        k, n = shape
        if time.monotonic() > self.end:
            self.miss("no time is left", K=k, N=n)
            return
        weight, bias = random_weight(n, k, 0), random_weight(1, n, -1)[0]
        copies = ROTATED_BYTES // (k * n) + 1 if min(all_m) <= ROTATED_ROWS else 1
        layers = self.build(weight, bias, copies, K=k, N=n)
        for m in all_m:
            if time.monotonic() > self.end:
                self.miss("no time is left", K=k, N=n, M=m)
                continue
            x = activations(m, k)
            reference = torch.nn.functional.linear(x.float(), weight.float(), bias.float())
            timed, errors = self.prepare(layers, m, x, reference, K=k, N=n)
            for _ in range(TURNS):
                for one in timed.values():
                    one.sample()
            for (name, graph), one in timed.items():
                own = layers[name][0]
                row = {"operation": own[0].operation, "contender": name, "graph": graph, "K": k, "N": n, "M": m}
                row |= {"rotated": m <= ROTATED_ROWS, "layers": one.calls, "dtype": str(own[0].dtype)[6:]}
                row |= {"us": statistics.median(one.samples), "samples_us": one.samples}
                self.rows.append({**row, "relative_error": errors.get(name)})
            print_rows([row for row in self.rows if (row["K"], row["N"], row["M"]) == (k, n, m)])


def print_rows(rows):
    ours = {row["graph"]: row["us"] for row in rows if row["contender"] == "int8q"}
    for row in rows:
        ratio = f"{row['us'] / ours[row['graph']]:7.2f} x int8q" if row["graph"] in ours else ""
        kind = "graph" if row["graph"] else "eager"
        print(f"  M={row['M']:<5} {row['contender']:20} {kind} {row['us']:10.2f} us {ratio}", flush=True)


def random_weight(rows, cols, seed):
    generator = torch.Generator(device="cuda").manual_seed(seed + 2)
    return (torch.randn(rows, cols, generator=generator, device="cuda") / math.sqrt(cols)).bfloat16()


def activations(m, k):
    """Normal, cut at 3.5, with OUTLIERS columns of 40 on three of four rows."""
    x = torch.randn(m, k, generator=torch.Generator(device="cuda").manual_seed(1), device="cuda").clamp(-3.5, 3.5)
    rows = torch.arange(m, device="cuda") % 4 != 3
    for t in range(OUTLIERS):
        x[rows, t * (k // OUTLIERS)] = 40.0
    return x.bfloat16()


def versions():
    found = {"torch": torch.__version__, "cuda_of_torch": torch.version.cuda}
    try:
        found["bitsandbytes"] = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        found["bitsandbytes"] = "none"
    return found


def store(path, run, gpu):
    library = _abi.library()
    record = {
        **describe_process(library.path, library.int8q_version_string().decode(), versions()),
        "machine": describe_machine(),
        "gpu": torch.cuda.get_device_name(),
        "context": gpu,
        "outliers": OUTLIERS,
        "missing": run.missing,
        "rows": run.rows,
    }
    unfinished = Path(f"{path}.unfinished")
    unfinished.write_text(json.dumps(record, indent=1), encoding="utf-8")
    unfinished.replace(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    shapes = ["4096x4096", "4096x6144", "4096x28672", "14336x4096"]  # Llama-3-8B's
    parser.add_argument("--shapes", nargs="+", default=shapes, metavar="KxN")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64, 512, 2048, 4096], help="M")
    parser.add_argument("--seconds", type=float, default=300.0, help="after which no other M is begun (default 300)")
    parser.add_argument("--json", help="store the results in this file")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    gpu = int8q.diagnose()["gpu"]["devices"][torch.cuda.current_device()]
    gemm = os.environ.get("INT8Q_CUDA_GEMM", "int8q")
    print(f"int8q {gpu['image']}, products by {gemm}, {versions()}, on {torch.cuda.get_device_name()}; median us")
    run = Comparison(args.seconds)
    for shape in args.shapes:
        k, n = map(int, shape.split("x"))
        print(f"linear, K={k} N={n}")
        try:
            run.measure((k, n), args.rows)
        except Exception as error:  # out of memory, say; the other shapes may fit
            run.miss(f"{type(error).__name__}: {error}", K=k, N=n)
        torch.cuda.empty_cache()
        if args.json:
            store(args.json, run, gpu)


if __name__ == "__main__":
    main()
